"""Attacks on the rule of what a checkpoint may hold: names in disguise, and what must stay allowed beside them."""

import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import get_loader
from torch import nn

from tests.conftest import QUICK
from tests.hostile.helpers import COMMAND, Mutation, data_option, hparam, model, refused, save, trainer, with_options
from vision_zoo.__main__ import main
from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError
from vision_zoo.trust import TRUSTED_PACKAGES, Allowlist

SCHEDULES, CALLBACKS = "torch.optim.lr_scheduler", "lightning.pytorch.callbacks"
RUN = "torch.utils.collect_env.run"
HUB = with_options("torch.hub.load", repo_or_dir=".", model="evil", source="local")
WORD = "which is no plain word"
ADMIT = "code of a package that is not trusted. If you trust it, admit it with --trusted_packages"


def section(name: str, value: object) -> Mutation:
    return lambda c: c["vision_zoo"]["config"].update({name: value})


def callback(name: str, **options: object) -> Mutation:
    return trainer("callbacks", [with_options(f"{CALLBACKS}.{name}", **options)])


def schedule(function: object) -> Mutation:
    return model("scheduler", with_options(f"{SCHEDULES}.LambdaLR", lr_lambda=function))


def lambda_transform(function: object) -> Mutation:
    return data_option("augmentation", [with_options("torchvision.transforms.v2.Lambda", lambd=function)])


ATTACKS: dict[str, tuple[Mutation, str]] = {
    "partial": (lambda_transform(with_options("functools.partial", func="os.system")), f"{ADMIT} functools"),
    "partial of a partial": (
        schedule(with_options("functools.partial", func=with_options("functools.partial", func=RUN))),
        f"{ADMIT} functools",
    ),
    "partial through torch": (
        lambda_transform(with_options("torch.functional.partial", func="os.system")),
        "names torch.functional.partial",
    ),
    "function of torch that runs a program": (
        lambda_transform(with_options(RUN, command=COMMAND)),
        f"names {RUN} as lambd, which is no Module class",
    ),
    "its name alone": (schedule(RUN), f"names {RUN} as lr_lambda, which is no Module class"),
    "lambda as a text": (schedule(f"lambda _: __import__('os').system('{COMMAND}')"), WORD),
    "lambda as a short text": (schedule("lambda:exec(COMMAND)"), "--model.scheduler.lr_lambda: got 'lambda:exec"),
    "hub as a hook of training": (callback("LambdaCallback", on_train_start="torch.hub.load"), "as on_train_start"),
    "torch.load as a hook": (callback("LambdaCallback", setup=with_options("torch.load", f="a.pt")), "as setup"),
    "TorchScript as backbone": (hparam("backbone", with_options("torch.jit.load", f="a.pt")), "as backbone"),
    "metric that loads a model": (
        data_option("augmentation", [with_options("torchmetrics.text.BERTScore", model_name_or_path="evil")]),
        f"{ADMIT} torchmetrics",
    ),
    "package beside the checkpoint": (hparam("backbone", with_options("absent_zoo.Net")), f"{ADMIT} absent_zoo"),
    "module within a module": (lambda_transform("torch.serialization.os.system"), "which is posix.system"),
    "name of another script": (trainer("plugins", ["\u00e9vil.Net"]), f"names \u00e9vil.Net, {ADMIT} \u00e9vil"),
    "fullwidth dots": (trainer("plugins", ["evil_package\uff0eNet"]), "--trainer.plugins: got "),
    "module named like a keyword": (trainer("plugins", ["class.Net"]), f"names class.Net, {ADMIT} class"),
    "the program itself": (trainer("plugins", ["__main__.sys.exit"]), f"{ADMIT} __main__"),
    "module that runs when imported": (
        trainer("callbacks", [with_options("torch.utils.bottleneck.__main__.main")]),
        "but torch.utils.bottleneck.__main__.main cannot be imported",
    ),
    "method": (callback("LambdaCallback", setup="torch.nn.Module.__init__"), "torch.nn.Module.__init__ as setup"),
    "method as a class": (
        trainer("callbacks", [with_options("lightning.pytorch.LightningModule.load_from_checkpoint")]),
        "as callbacks, which is no Callback class",
    ),
    "dots in a key": (model("optimizer.class_path", "evil_package.Net"), "has an option 'optimizer.class_path'"),
    "escaped dots": (model("backbone", "evil_package\\x2eNet"), WORD),
    "list that is appended to": (trainer("callbacks+", [HUB]), "has an option 'callbacks+' in trainer"),
    "key of the parser's own": (model("__path__", "evil.yaml"), "has an option '__path__' in model"),
    "file without an ending": (trainer("strategy", "evil"), "names the file evil as trainer.strategy"),
    "file beside the sections": (section("config", "evil.yaml"), "names the file evil.yaml as config"),
    "file as a number": (data_option("image_size", "/etc/passwd"), "--data.image_size: got '/etc/passwd'"),
    "address of a file": (model("optimizer", "file://evil.yaml"), WORD),
    "address within the local file system": (model("optimizer", "local::evil.yaml"), WORD),
    "address in the network": (model("optimizer", "http://127.0.0.1:9/evil.yaml"), WORD),
    "list in a line": (trainer("plugins", "- torch.hub.load"), WORD),
    "document in a line": (trainer("plugins", ["--- torch.hub.load"]), WORD),
    "tag": (trainer("plugins", ["!!str torch.hub.load"]), WORD),
    "line break of Unicode": (trainer("plugins", ["a\u2028class_path: evil_package.Net"]), WORD),
    "long text": (trainer("plugins", ["a" * 10**6]), "has a text of 1,000,000 letters"),
    "class within a class without an end": (
        lambda c: c["vision_zoo"]["config"]["model"].update(backbone=within_sequences(30)),
        "are nested without an end",
    ),
    "hub as strategy": (trainer("strategy", HUB), "names torch.hub.load as strategy, which is no Strategy class"),
    "hub as profiler": (trainer("profiler", HUB), "names torch.hub.load as profiler, which is no Profiler class"),
    "hub as plugin": (trainer("plugins", [HUB]), "names torch.hub.load as plugins, which is no Precision or "),
    "hub as an option that takes no class": (trainer("max_time", HUB), "names torch.hub.load as max_time, which is no"),
    "hub as the seed": (section("seed_everything", HUB), "names torch.hub.load as seed_everything, which is no"),
    "callback as backbone": (
        model("backbone", with_options(f"{CALLBACKS}.Timer")),
        "as backbone, which is no Module class",
    ),
    "logger within a network": (
        model("backbone", with_options("torch.nn.Linear", device=with_options("lightning.pytorch.loggers.CSVLogger"))),
        "as device, which is no Module class",
    ),
    "options beside a class": (
        model("backbone", {"class_path": "torch.nn.Linear", "init_args+": HUB}),
        "has 'init_args+' beside torch.nn.Linear",
    ),
    "instantiator": (
        lambda c: c["datamodule_hyper_parameters"].update(_instantiator="os.system"),
        "names a function as _instantiator",
    ),
    "address to write to": (
        trainer("logger", [with_options("lightning.pytorch.loggers.CSVLogger", save_dir="memory://evil")]),
        "would have --trainer.logger write to memory://evil",
    ),
}  # fmt: skip
# Allowed to be read: what only `fit` writes, and words that import nothing, which the parser refuses.
READ = ("address to write to", "lambda as a short text", "fullwidth dots", "file as a number")


def within_sequences(depth: int) -> dict[str, object]:
    spec: dict[str, object] = HUB
    for _ in range(depth):
        spec = with_options("torch.nn.Sequential", args=[spec])
    return spec


@pytest.mark.parametrize("name", ATTACKS)
def test_a_name_in_disguise_is_refused_before_it_is_called(name, good, here, capsys, evil_package, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: Path("MARKER").touch())
    # As a trusted package that is not installed.
    monkeypatch.setattr("vision_zoo.trust.TRUSTED_PACKAGES", (*TRUSTED_PACKAGES, "absent_zoo"))
    for module in ("class", "\u00e9vil", "absent_zoo"):
        Path(f"{module}.py").write_text("open('MARKER', 'w')\nclass Net: pass\n")
    for file in ("evil", "evil.yaml"):
        Path(file).write_text("class_path: evil_package.Net\n")
    Path("hubconf.py").write_text("def evil(*_, **__):\n    open('MARKER', 'w')\n")
    torch.save({}, "a.pt")
    mutate, message = ATTACKS[name]
    mutate(good)
    path = save(good)
    error = refused(capsys, ["fit", "--ckpt_path", path])
    assert message in error, error
    if name not in READ:
        with pytest.raises(CheckpointError, match=r"evil\.ckpt"):
            Classifier.load_from_checkpoint(path)
        assert "evil.ckpt" in refused(capsys, ["predict", "--ckpt_path", path, "--images", "."])
    assert not Path("MARKER").exists()
    assert "evil_package" not in sys.modules


@settings(max_examples=2000, deadline=None)
@given(st.text(st.sampled_from("ab1.-?: #,[]{}&*!|>%@`'\"\\=~<_/+()0xe\u00e9\u00a0\t\n"), max_size=12))
def test_a_text_that_is_allowed_anywhere_is_read_as_itself(text):
    """The parser reads texts as YAML: none may turn into a list, a mapping, or another text."""
    if list(Allowlist(()).option(text, "trainer.plugins")):
        return
    try:
        read = get_loader("yaml")(text)
    except ValueError:  # such as a date that is none: the parser refuses it
        return
    assert read == text or not isinstance(read, (str, list, dict, set))


# --------------------------------------------------------------------------------------------------- what stays allowed


class Options(nn.Module):
    """A network of the user's own, whose options hold what they like."""

    def __init__(
        self, shape, classes, activation: Any = None, note: str = "", mode: Literal["a: b"] | None = None,
        files: list[str] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.layer = nn.Linear(784, classes)
        self.note = note

    def forward(self, images):
        return self.layer(images.flatten(1))


def test_texts_of_options_that_take_texts_are_free(here, capsys):
    spec = (
        "{class_path: tests.hostile.test_names_in_disguise.Options, init_args: {note: '{class_path: os.system}', "
        "mode: 'a: b', files: [/etc/passwd, os.system], activation: torch.nn.functional.relu}}"
    )
    logger = "{class_path: CSVLogger, init_args: {save_dir: logs, name: 'a: b', version: '[1]'}}"
    words = [*QUICK[:1], "--model.backbone", spec, "--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1"]
    assert main([*words, "--trainer.logger", logger, "--model.scheduler", "null"]) == 0
    run = str(Path("runs/default/version_0").resolve())
    assert main(["fit", "--ckpt_path", run, "--trusted_packages", "tests", "--trainer.max_epochs", "2"]) == 0
    assert main(["test", "--ckpt_path", run, "--trusted_packages", "tests"]) == 0
    model = Classifier.load_from_checkpoint(f"{run}/checkpoints/best.ckpt", trusted_packages=["tests"])
    assert model.backbone.note == "{class_path: os.system}"


@pytest.mark.parametrize("option", ["16-mixed", "00:02:00", "val/loss", "0,1", "cuda:0", "-1", "", "1e-4", "a b"])
def test_plain_words_are_allowed_anywhere(option):
    assert not list(Allowlist(()).option(option, "trainer.precision"))


def test_functions_of_a_library_are_admitted_by_name_alone():
    spec = with_options(f"{SCHEDULES}.LambdaLR", lr_lambda=RUN)
    assert list(Allowlist(()).option(spec, "model.scheduler"))
    assert list(Allowlist(("tests",)).option(spec, "model.scheduler"))
    assert not list(Allowlist(("torch",)).option(spec, "model.scheduler"))
    assert not list(Allowlist(()).option(with_options("torch.nn.GELU", f="torch.nn.functional.relu"), "model.backbone"))


def test_a_checkpoint_is_read_once_to_be_continued(trained_run, here, monkeypatch):
    run = shutil.copytree(trained_run, here / "runs/default/version_0")
    paths: list[Path] = []
    load = torch.load

    def counted(file, *args, **options):
        paths.extend([Path(file)] if isinstance(file, (str, Path)) else [])
        return load(file, *args, **options)

    monkeypatch.setattr("torch.load", counted)
    assert open_checkpoint(str(run)).path == paths.pop() == run / "checkpoints/best.ckpt"
    assert main(["fit", "--ckpt_path", str(run), "--test_after_fit", "false"]) == 0
    assert paths == [run / "checkpoints/last.ckpt"]
