"""Bad input: checkpoints, and what the commands that read one are asked for."""

import fcntl
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from tests import tiny
from tests.cli.cases import Case, Prepare, file
from vision_zoo.backbones import LeNet5

CKPT = ("--ckpt_path", "run/checkpoints/best.ckpt")
OFFER = r"last\.ckpt .*The next older good checkpoint is .*run/checkpoints/best\.ckpt: --ckpt_path .*best\.ckpt"


def foreign_zip(here: Path) -> None:
    with zipfile.ZipFile(here / "foreign.ckpt", "w") as archive:
        archive.writestr("holiday.txt", "sun")


def lock(here: Path) -> None:
    handle = (here / "run/.lock").open("w")
    fcntl.flock(handle, fcntl.LOCK_EX)
    HELD.append(handle)


HELD: list[object] = []


def changed(name: str, change: Callable[[dict], object]) -> Prepare:
    def prepare(here: Path) -> None:
        checkpoint = torch.load(here / "run/checkpoints/last.ckpt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, here / "run/checkpoints" / name)

    return prepare


def broken(name: str, size: int) -> Prepare:
    def prepare(here: Path) -> None:
        path = here / "run/checkpoints" / name
        content = path.read_bytes()[:size]
        path.unlink()  # best.ckpt may be the same file
        path.write_bytes(content)

    return prepare


CHECKPOINTS = [
    Case("no checkpoint", ("test",), r"test needs a trained network: --ckpt_path"),
    Case("no checkpoint to validate", ("validate",), r"validate needs a trained network"),
    Case("no checkpoint to export", ("export",), r"export needs a trained network"),
    Case("no run yet", ("test", "--ckpt_path", "best"), r"no run with a checkpoint below"),
    Case("no run to continue", ("fit", "--ckpt_path", "last"), r"no run with a checkpoint below"),
    Case("checkpoint missing", ("test", "--ckpt_path", "x.ckpt"), r"x\.ckpt not found\. .* vision_zoo list runs"),
    Case(
        "checkpoint a folder",
        ("test", "--ckpt_path", "x.ckpt"),
        r"x\.ckpt holds no checkpoints/best\.ckpt",
        lambda here: (here / "x.ckpt").mkdir(),
    ),
    Case(
        "checkpoint empty",
        ("test", "--ckpt_path", "x.ckpt"),
        r"x\.ckpt is not a checkpoint that can be loaded safely",
        file("x.ckpt"),
    ),
    Case(
        "checkpoint an exported program",
        ("predict", "--ckpt_path", "x.onnx", "--images", "."),
        r"x\.onnx is no checkpoint but a program that export made of one: give the run that it is from",
        file("x.onnx", "\x08\x0a"),
    ),
    Case(
        "a pattern where one network is asked for",
        ("explain", "--ckpt_path", "r*n", "--images", "."),
        r"one network is asked for, and this is a pattern; predict, test and export average several",
        lambda here: (here / "run").mkdir(exist_ok=True),
    ),
    Case(
        "checkpoint of words",
        ("test", "--ckpt_path", "x.ckpt"),
        r"x\.ckpt is not a checkpoint",
        file("x.ckpt", "hello"),
    ),
    Case(
        "checkpoint a foreign archive",
        ("test", "--ckpt_path", "foreign.ckpt"),
        r"foreign\.ckpt is not a checkpoint",
        foreign_zip,
    ),
    Case(
        "checkpoint a state dict",
        ("test", "--ckpt_path", "x.ckpt"),
        r"a bare state dict goes to --model\.weights",
        lambda here: torch.save(LeNet5((1, 28, 28), 10).state_dict(), here / "x.ckpt"),
    ),
    Case(
        "checkpoint of another program",
        ("test", "--ckpt_path", "x.ckpt"),
        r"it describes no backbone",
        lambda here: torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, here / "x.ckpt"),
    ),
    Case(
        "checkpoint of weights alone, to continue from",
        ("fit", "--ckpt_path", "run/checkpoints/alone.ckpt"),
        r"alone\.ckpt holds weights alone.* take last\.ckpt .*or start a new one with .*--model\.weights .*alone\.ckpt",
        changed("alone.ckpt", lambda c: [c.pop(name) for name in ("optimizer_states", "lr_schedulers", "loops")]),
    ),
    Case(
        "more epochs done than asked for",
        ("fit", "--ckpt_path", "run/checkpoints/far.ckpt"),
        r"You restored a checkpoint with current_epoch=5, but you have set Trainer\(max_epochs=2\)",
        changed("far.ckpt", lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(completed=5)),
    ),
    Case("last truncated, fit", ("fit", "--ckpt_path", "run"), OFFER, broken("last.ckpt", 5000)),
    Case("last empty, fit", ("fit", "--ckpt_path", "run/checkpoints/last.ckpt"), OFFER, broken("last.ckpt", 0)),
    Case(
        "best truncated, test",
        ("test", "--ckpt_path", "run"),
        r"best\.ckpt .*The next older good checkpoint is .*last\.ckpt",
        broken("best.ckpt", 5000),
    ),
    Case(
        "both truncated",
        ("test", "--ckpt_path", "run"),
        r"no other good checkpoint in .*run/checkpoints",
        lambda here: (broken("best.ckpt", 50)(here), broken("last.ckpt", 50)(here)),
    ),
    Case(
        "other channels than the checkpoint",
        ("test", *CKPT, "--data", "CIFAR10"),
        r"takes images of shape \(1, 28, 28\), CIFAR10 has \(3, 32, 32\)",
        lambda here: tiny.write_cifar10(here / "data", 50, 20),
    ),
    Case(
        "other classes than the checkpoint",
        ("test", *CKPT, "--data", "EMNIST"),
        r"the checkpoint knows 10 classes, EMNIST has 47",
        lambda here: tiny.write_emnist(here / "data"),
    ),
    Case(
        "run in use",
        ("fit", "--ckpt_path", "run", "--trainer.max_epochs", "2"),
        r"run is in use by another process: wait",
        lock,
    ),
    Case(
        "validation images that there are none of",
        ("validate", *CKPT, "--data.val_split", "0"),
        r"--data\.val_split is 0, so all of them were trained with",
    ),
    Case("predict without images", ("predict", *CKPT), r"predict needs images: --images"),
    Case("predict without a checkpoint", ("predict", "--images", "."), r"predict needs a trained network: --ckpt_path"),
    Case("picture missing", ("predict", *CKPT, "--images", "gone.png"), r"--images gone\.png: .*gone\.png not found"),
    Case(
        "folder without images",
        ("predict", *CKPT, "--images", "empty"),
        r"--images empty: no images in",
        lambda here: (here / "empty").mkdir(),
    ),
    Case(
        "picture unreadable",
        ("predict", *CKPT, "--images", "a.png"),
        r"cannot read the file as an image",
        file("a.png", "no picture"),
    ),
    Case(
        "pictures without their option",
        ("predict", *CKPT, "pictures"),
        r"predict needs images: --images with files",
        lambda here: (here / "pictures").mkdir(),
    ),
    Case(
        "output a folder",
        ("predict", *CKPT, "--images", "a.png", "--output", "run"),
        r"--output run cannot be written: it is a folder",
        lambda here: Image.new("L", (28, 28)).save(here / "a.png"),
    ),
    Case(
        "top_k of more classes",
        ("predict", *CKPT, "--images", "a.png", "--top_k", "11"),
        r"--top_k must be between 1",
        lambda here: Image.new("L", (28, 28)).save(here / "a.png"),
    ),
    Case(
        "export onto the checkpoint",
        ("export", *CKPT, "--format", "state_dict", "--output", "run/checkpoints/best.ckpt"),
        r"is the checkpoint itself",
    ),
    Case(
        "export below a file",
        ("export", *CKPT, "--format", "state_dict", "--output", "file/x.pth"),
        r"cannot be written",
        file("file"),
    ),
    Case("export format", ("export", *CKPT, "--format", "gif"), r"--format: got 'gif', expected one of"),
    Case("test output below a file", ("test", *CKPT, "--output", "file/out"), r"--output file/out", file("file")),
    Case("show nothing", ("show", "--count", "0"), r"--count must be between 1"),
    Case("show into a text file", ("show", "--output", "a.txt"), r"--output a\.txt must end in \.png"),
    Case("summary without depth", ("summary", "--depth", "0"), r"--depth must be at least 1"),
    Case(
        "a configuration for a checkpoint",
        ("test", "--ckpt_path", "run/config.yaml"),
        r"a configuration is no checkpoint",
    ),
]
