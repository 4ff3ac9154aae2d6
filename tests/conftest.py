import functools
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests state what a CPU does
os.environ["OMP_NUM_THREADS"] = "1"  # small networks on small batches: more threads only wait for each other

import docstring_parser
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests import tiny
from vision_zoo.__main__ import main

# The parser reads the same docstrings for each command; a user gives one command to a process.
docstring_parser.parse = functools.cache(docstring_parser.parse)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """No test can tell whether the machine would keep its files through a power cut; those of a failing disk say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


class Undrawn(Figure):
    """A figure that is written as another picture: to draw those of a small run takes a third of its time."""

    def savefig(self, file, **_):
        Image.new("L", (8, 8)).save(file, "png")


@pytest.fixture(autouse=True)
def no_drawing(request, monkeypatch):
    """Curves, matrices and grids are drawn where a test is marked as looking at them, and by fixtures of a module."""
    if "draws" not in request.keywords:
        monkeypatch.setattr("vision_zoo.plots.Figure", Undrawn)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """A test that would download says so at once, instead of waiting for a server."""

    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)  # a name of its own for it
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache" / "torch"))


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch):
    """LightningCLI warns when it is driven in-process beside words of another program."""
    monkeypatch.setattr(sys, "argv", ["vision_zoo"])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """The run folder of a short fit on the embedded images."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        code = main([*QUICK, "--trainer.max_epochs", "2"])
    finally:
        os.chdir(before)
    assert code == 0
    return folder / "runs" / "default" / "version_0"


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """Tiny data sets in the real formats."""
    root = tmp_path_factory.mktemp("data")
    tiny.write_mnist(root)
    tiny.write_fashion_mnist(root)
    tiny.write_cifar10(root)
    return root


@pytest.fixture
def only_parsed(monkeypatch):
    """A command ends where its words are parsed, with exit code 77."""
    from vision_zoo.cli import main as cli
    from vision_zoo.cli import studying
    from vision_zoo.cli.parser import Parser

    def then_exit(parse):
        def only_parse(*args):
            parse(*args)
            sys.exit(77)

        return only_parse

    monkeypatch.setattr(Parser, "parse_arguments", then_exit(Parser.parse_arguments))
    monkeypatch.setattr(cli, "_options_of", then_exit(cli._options_of))
    monkeypatch.setattr(studying, "parse", then_exit(studying.parse))


# LeNet-5 on the embedded images, ten batches an epoch.
QUICK = ["fit", "--model.backbone", "LeNet5", "--trainer.limit_train_batches", "10"]
