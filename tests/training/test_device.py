"""Images that the device keeps, --data.device, and networks that torch compiles, --compile: results as without."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import tiny
from tests.training.runs import PLAIN, rows, same, state, stop_at
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.classifier import Classifier
from vision_zoo.data import sources
from vision_zoo.data.loaders import Loader
from vision_zoo.data.sources import InMemory, OnDevice
from vision_zoo.errors import ConfigError
from vision_zoo.training.performance import Performance
from vision_zoo.training.speed_trial import Way
from vision_zoo.types import ImageShape

ROOT = Path(__file__).parents[2]
RUN = Path("runs/default/version_0")
SHORT = [*PLAIN, "--trainer.max_epochs", "2", "--data.batch_size", "32", "--data.augmentation", "[RandomCrop, MixUp]",
         "--channels_last", "false", "--trainer.log_every_n_steps", "4"]  # fmt: skip
DEVICE = ["--data.device", "true"]


def outcome(root: str) -> dict:
    """The last state of a run below a folder, and its metrics."""
    return {**state(root / RUN / "checkpoints" / "last.ckpt"), "rows": rows(root / RUN)}


def trained(root: str, *words: str) -> dict:
    assert main([*SHORT, "--trainer.default_root_dir", root, *words]) == 0
    return outcome(root)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    """The last state of the run that the others are compared with."""
    return trained(str(tmp_path_factory.mktemp("plain")))


# ------------------------------------------------------------------------------------------------- images on the device


BALANCED = {"training": True, "shuffle": True, "balanced": True}


def source(count=23) -> InMemory:
    numbers = torch.arange(count)
    return InMemory(numbers.to(torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 1, 2, 2), (numbers % 3 == 0).long())


def test_a_run_with_images_on_the_device_is_the_same_bit_for_bit_also_where_it_goes_on_without(
    plain, here, monkeypatch
):
    fetched, fetch = [], OnDevice.fetch
    monkeypatch.setattr(OnDevice, "fetch", lambda *words, **more: fetched.append(words[0]) or fetch(*words, **more))
    stop_at(monkeypatch, 9, "SIGTERM")
    assert main([*SHORT, *DEVICE, "--trainer.default_root_dir", "device"]) == 143
    monkeypatch.undo()
    assert len(set(fetched)) == 1, "training and validation share one copy"
    monkeypatch.chdir(here)
    assert main(["fit", "--ckpt_path", str("device" / RUN), "--data.device", "false"]) == 0
    assert same(plain, outcome("device"))


@pytest.mark.parametrize("order", [{}, BALANCED])
def test_batches_of_processes_are_those_of_memory(order):
    memory = source()
    for rank in range(3):
        loaders = [Loader(it, torch.arange(23), 4, rank=rank, world_size=3, **order)
                   for it in (memory, OnDevice(memory, torch.device("cpu")))]  # fmt: skip
        assert same(*map(list, loaders))


def test_batches_are_picked_on_the_device_and_the_order_is_drawn_in_memory():
    """meta is a device that computes nothing, so that what moved there by mistake could not be read."""
    batches = Loader(OnDevice(source(), torch.device("meta")), torch.arange(23), 4, **BALANCED)
    for images, labels in batches:
        assert (images.device.type, labels.device.type) == ("meta", "meta")
        assert images.dtype == torch.uint8


def test_images_that_do_not_fit_stay_in_memory_with_a_warning(monkeypatch):
    memory = source()
    monkeypatch.setattr(sources, "free_memory", lambda device: 100.0)
    batches = Loader(OnDevice(memory, torch.device("meta")), torch.arange(23), 4)
    with pytest.warns(UserWarning, match=r"--data.device true: the images take .* that meta has free, and stay in the"):
        assert same(list(batches), list(Loader(memory, torch.arange(23), 4)))


def test_images_that_are_read_from_files_for_each_batch_are_refused(here, capsys):
    tiny.write_image_folder(here / "photos")
    words = ["--data", "ImageFolder", "--data.root", "photos", "--data.image_size", "28", "--data.in_memory", "false"]
    assert main([*PLAIN, *words, *DEVICE]) == 2
    assert "read from files for each batch: leave it out, or keep" in capsys.readouterr().err
    assert not (here / "runs").exists()


# --------------------------------------------------------------------------------------------------- compiled networks


class AnySize(nn.Module):
    """A network of somebody's own that takes images of any size."""

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).relu().mean(dim=(2, 3)))


@pytest.fixture
def compiled_calls(monkeypatch) -> list[bool]:
    """Of each call of a compiled network, whether that was in training; it ends the outputs of the last one."""
    compile_, calls, outputs = torch.compile, [], []

    def recording(call, **options):
        compiled = compile_(call, **options)

        def recorded(*images):
            calls.append(call.__self__.training)
            outputs.append(compiled(*images))
            if len(outputs) > 1:  # as CUDA graphs do, which compute into the same memory
                outputs[-2].data.fill_(math.nan)
            return outputs[-1]

        return recorded

    monkeypatch.setattr(torch, "compile", recording)
    return calls


def test_training_is_compiled_and_evaluation_is_not_and_results_and_checkpoints_are_as_without(
    plain, here, compiled_calls, capsys
):
    compiled = trained("compiled", "--compile", "eager")
    assert compiled_calls == [True] * (1 + 12), "the trial and two epochs of six steps"
    assert "compiled (eager) in " in " ".join(capsys.readouterr().out.split())
    for part in ("state_dict", "optimizer_states", "rows"):
        assert same(plain[part], compiled[part])
    assert compiled["callbacks"]["Performance"]["compiled"] == "eager"
    assert isinstance(Classifier.load_from_checkpoint("compiled" / RUN).backbone, LeNet5)


def test_smaller_images_at_first_go_with_compiling(here, compiled_calls):
    words = ["--trainer.callbacks", "ProgressiveResizing", "--model.backbone", f"{__name__}.AnySize"]
    plain = trained("plain", *words)
    assert not compiled_calls
    assert same(plain["state_dict"], trained("compiled", *words, "--compile", "eager")["state_dict"])
    assert compiled_calls


def test_what_cannot_be_compiled_is_refused_in_one_line(here, monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler\n\nSet TORCH=1")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    assert main([*SHORT, "--compile", "true"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--compile: torch cannot compile LeNet5 here: leave it out, or install what it needs" in error
    assert error.endswith("(backend='inductor' raised: InvalidCxxCompiler: No working C++ compiler)")


def test_what_cannot_be_compiled_later_is_told_in_one_line(here, monkeypatch, capsys):
    from torch._dynamo.exc import InternalTorchDynamoError

    calls = []

    def failing(call, **options):
        def call_or_fail(*images):
            calls.append(images)
            if len(calls) > 3:
                raise InternalTorchDynamoError("no such shape\n\nSet TORCHDYNAMO_VERBOSE=1")
            return call(*images)

        return call_or_fail

    monkeypatch.setattr(torch, "compile", failing)
    assert main([*SHORT, "--compile", "eager"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error == "vision_zoo: torch could not compile the network anew (no such shape): continue with --compile false"
    )


def test_a_network_in_pieces_is_not_compiled():
    model = Classifier(LeNet5, (1, 28, 28), ["a", "b"])
    with pytest.raises(ConfigError, match="SimpleNamespace divides the network, and --compile needs it whole"):
        Performance(compiled=True)._compile(SimpleNamespace(strategy=SimpleNamespace(), datamodule=None), model, Way())


@pytest.mark.slow  # 40 s: torch compiles C++
def test_a_compiled_run_goes_on_exactly_and_its_results_are_those_of_a_plain_one(plain, here, monkeypatch):
    whole = trained("whole", "--compile", "true")
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(whole["state_dict"][name], value, rtol=1e-3, atol=1e-4)
    stop_at(monkeypatch, 9, "SIGTERM")
    assert main([*SHORT, "--compile", "true", "--trainer.default_root_dir", "stopped"]) == 143
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(["fit", "--ckpt_path", str("stopped" / RUN)]) == 0
    assert same(whole, outcome("stopped"))


@pytest.mark.slow  # 20 s: imports all of torch's compiler
def test_without_a_working_compiler_the_way_out_is_told(here):
    lacking = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(here), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "vision_zoo", *SHORT, "--compile", "true"]
    done = subprocess.run(words, env=lacking, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "install what it needs, for a CPU a C++ compiler such as g++" in done.stderr.splitlines()[-1]
    assert "no-such-compiler" in done.stderr.splitlines()[-1]
