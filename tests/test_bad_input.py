"""The catalogue of bad input: each case is refused with one message that says what, where and the way out.

Every case runs the real command line. It must end with exit code 2, or 1 where the fault shows only while training, say
one thing, show no traceback, and leave the working directory as it was.
"""

import fcntl
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5, SmallCNN
from vision_zoo.training import RunFolder


class OneMoreAxis(nn.Module):
    """What somebody writes who takes the image for a batch."""

    def forward(self, image):
        return image[:1].unsqueeze(0)


FIT = ("fit", "--model.backbone", "LeNet5", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3")
ONE_CYCLE = ("--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.1")
STOPPING = "[{class_path: EarlyStopping, init_args: {monitor: val/loss}}]"
MNIST = (*FIT, "--data", "MNIST")
CIFAR = (*FIT, "--data", "CIFAR10")
FOLDER = (*FIT, "--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "32")
ARRAYS = (*FIT, "--data", "ArrayFile", "--data.path", "a.npz")
IMAGES, LABELS = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"
CKPT = ("--ckpt_path", "run/checkpoints/best.ckpt")

Prepare = Callable[[Path], object]


CROP_TOO_LARGE = "[{class_path: torchvision.transforms.v2.RandomCrop, init_args: {size: 40}}]"


class Case(NamedTuple):
    """What is prepared in the working directory, the words, and a pattern of the message."""

    name: str
    words: tuple[str, ...]
    message: str
    prepare: Prepare = lambda here: None


class NotANetwork:
    def __init__(self, shape, classes):
        pass


def tree(folder: Path) -> dict[str, object]:
    """Every path below a folder with its content, but for the cache."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.partition("/")[0] != "cache":
            found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


def refuse(capsys, words: tuple[str, ...], message: str, code: int = 2) -> str:
    """Run a command that must fail with one message."""
    assert main(list(words)) == code
    error = capsys.readouterr().err
    assert re.search(message, error), error
    lines = [line for line in error.splitlines() if not line.startswith("changed against the checkpoint")]
    assert [line.startswith("vision_zoo: ") for line in lines].count(True) == 1, error
    assert lines[0].startswith("vision_zoo: "), error
    assert "Traceback" not in error
    assert "internal error" not in error
    return error


# -------------------------------------------------------------------------------------------------------- preparations


def mnist(name: str, damage: Callable[[bytes], bytes], compress: bool = False) -> Prepare:
    def prepare(here: Path) -> None:
        path = tiny.write_mnist(here / "data", 40, 20, compress=compress) / name
        path.write_bytes(damage(path.read_bytes()))

    return prepare


def mnist_without(name: str, folder: bool = False) -> Prepare:
    def prepare(here: Path) -> None:
        path = tiny.write_mnist(here / "data", 40, 20) / name
        path.unlink()
        if folder:
            path.mkdir()

    return prepare


def cifar(content: object) -> Prepare:
    def prepare(here: Path) -> None:
        path = tiny.write_cifar10(here / "data", 50, 20) / "cifar-10-batches-py/data_batch_2"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))

    return prepare


def photos(count: int) -> np.ndarray:
    return np.zeros((count, 3072), np.uint8)


def npz(**arrays: np.ndarray) -> Prepare:
    return lambda here: np.savez(here / "a.npz", **arrays)


def file(name: str, content: bytes | str = b"") -> Prepare:
    return lambda here: (here / name).write_bytes(content.encode() if isinstance(content, str) else content)


def config(content: bytes | str) -> Prepare:
    return file("mine.yaml", content)


def folder(*names: str, inside: str = "") -> Prepare:
    def prepare(here: Path) -> None:
        for name in names:
            tiny.write_image_folder(here / "pictures" / name, (inside,) if inside else ("cat", "dog"))

    return prepare


def pictures(here: Path) -> Path:
    return tiny.write_image_folder(here / "pictures")


def unreadable(*names: str) -> Prepare:
    def prepare(here: Path) -> None:
        for path in pictures(here).glob("*/*"):
            if not names or path.name in names:
                path.write_bytes(b"no picture")

    return prepare


def cut(name: str, write: Callable[..., Path], size: int = 1000) -> Prepare:
    def prepare(here: Path) -> None:
        path = write(here / "data", 20, 10) / name
        path.write_bytes(path.read_bytes()[:-size])

    return prepare


def truncated_npz(here: Path) -> None:
    path = tiny.write_npz(here / "a.npz", 20, 10)
    path.write_bytes(path.read_bytes()[:-500])


def damaged_npz(here: Path) -> None:
    path = tiny.write_npz(here / "a.npz", 20, 10)
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)


def foreign_zip(here: Path) -> None:
    with zipfile.ZipFile(here / "foreign.ckpt", "w") as archive:
        archive.writestr("holiday.txt", "sun")


def npz_images(count: int = 40, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros((count, 28, 28), dtype)


TEN = np.arange(40) % 10
DATA = [
    Case(
        "idx missing",
        MNIST,
        r"MNIST: t10k-labels-idx1-ubyte not found under .*download failed \(.*--data MNIST5k",
        mnist_without("MNIST/raw/t10k-labels-idx1-ubyte"),
    ),
    Case("idx a folder", MNIST, r"MNIST: train-images-idx3-ubyte not found under", mnist_without(IMAGES, folder=True)),
    Case("idx empty", MNIST, rf"{IMAGES} is broken \(the file is empty\)\. Delete", mnist(IMAGES, lambda old: b"")),
    Case(
        "idx truncated", MNIST, r"is broken \(31351 bytes of data instead of 31360", mnist(IMAGES, lambda old: old[:-9])
    ),
    Case("idx too long", MNIST, r"is broken \(31361 bytes of data", mnist(IMAGES, lambda old: old + b"x")),
    Case(
        "idx wrong magic",
        MNIST,
        r"not an IDX file of 3 dimension\(s\): it starts with 3c68746d",
        mnist(IMAGES, lambda old: b"<html>" + old),
    ),
    Case("idx header cut", MNIST, r"cut short within its header", mnist(IMAGES, lambda old: old[:7])),
    Case(
        "idx other size",
        MNIST,
        r"images of 14x56 instead of 28x28",
        mnist(IMAGES, lambda old: old[:8] + np.array([14, 56], ">u4").tobytes() + old[16:]),
    ),
    Case(
        "idx of a million million images",
        MNIST,
        r"is broken",
        mnist(IMAGES, lambda old: old[:4] + b"\xff" * 4 + old[8:]),
    ),
    Case(
        "idx labels out of range",
        MNIST,
        r"train labels from 10 to 10 in .*, but the 10 classes have 0 to 9",
        mnist(LABELS, lambda old: old[:8] + b"\x0a" * 40),
    ),
    Case(
        "idx counts differ",
        MNIST,
        r"40 train images but 5 labels",
        mnist(LABELS, lambda old: old[:4] + np.array([5], ">u4").tobytes() + old[8:13]),
    ),
    Case(
        "idx without images",
        MNIST,
        r"no train images in",
        lambda here: (
            mnist(IMAGES, lambda old: old[:4] + bytes(4) + old[8:16])(here),
            (here / "data" / LABELS).write_bytes(b"\0\0\x08\x01\0\0\0\0"),
        ),
    ),
    Case(
        "gzip corrupt",
        MNIST,
        r"train-images-idx3-ubyte\.gz is broken \(Not a gzipped file",
        mnist(f"{IMAGES}.gz", lambda old: b"no gzip at all", compress=True),
    ),
    Case(
        "gzip truncated",
        MNIST,
        r"train-images-idx3-ubyte\.gz is broken \(Compressed file ended",
        mnist(f"{IMAGES}.gz", lambda old: old[:-12], compress=True),
    ),
    Case("cifar empty", CIFAR, r"data_batch_2 is broken \(Ran out of input\)\. Delete", cifar(b"")),
    Case("cifar truncated", CIFAR, r"data_batch_2 is broken", cifar(pickle.dumps({"data": photos(9)})[:-5000])),
    Case("cifar a web page", CIFAR, r"data_batch_2 is broken", cifar(b"<html>not found</html>")),
    Case("cifar other keys", CIFAR, r"no pickled dictionary with data and labels", cifar({"pictures": photos(2)})),
    Case(
        "cifar labels out of range",
        CIFAR,
        r"train labels from 0 to 10 in",
        cifar({"data": photos(2), "labels": [0, 10]}),
    ),
    Case(
        "cifar counts differ", CIFAR, r"2 images but labels of shape \(1,\)", cifar({"data": photos(2), "labels": [0]})
    ),
    Case(
        "svhn truncated",
        (*FIT, "--data", "SVHN"),
        r"train_32x32\.mat is broken",
        cut("train_32x32.mat", tiny.write_svhn),
    ),
    Case(
        "stl10 truncated",
        (*FIT, "--data", "STL10"),
        r"train_X\.bin is broken",
        cut("stl10_binary/train_X.bin", tiny.write_stl10),
    ),
    Case(
        "usps truncated",
        ("fit", "--model.backbone", "FullyConnected", "--data", "USPS"),
        r"usps\.bz2 is broken",
        cut("usps.bz2", tiny.write_usps),
    ),
    Case("npz missing", ARRAYS, r"there is no file .*a\.npz\. Set --data\.path"),
    Case(
        "npz a folder", ARRAYS, r"there is no file .*a\.npz\. Set --data\.path", lambda here: (here / "a.npz").mkdir()
    ),
    Case("npz not named", (*FIT, "--data", "ArrayFile"), r"--data\.path must be given"),
    Case("npz empty", ARRAYS, r"a\.npz is broken \(not a \.npz archive.*--data\.path", file("a.npz")),
    Case("npz truncated", ARRAYS, r"a\.npz is broken", truncated_npz),
    Case("npz damaged", ARRAYS, r"a\.npz is broken .*CRC", damaged_npz),
    Case("npz counts differ", ARRAYS, r"has 40 images and 5 labels", npz(images=npz_images(), labels=TEN[:5])),
    Case("npz labels below zero", ARRAYS, r"the labels 0 or more", npz(images=npz_images(), labels=TEN - 1)),
    Case(
        "npz floats",
        ARRAYS,
        r"is float64, but uint8 .*Save values in \[0, 1\] as",
        npz(images=npz_images(dtype=float), labels=TEN),
    ),
    Case("npz without labels", ARRAYS, r"has no train images; it has images\. Name them", npz(images=npz_images())),
    Case("folder missing", FOLDER, r"there is no folder .*pictures\. Set --data\.root"),
    Case("folder a file", FOLDER, r"there is no folder .*pictures\. Set --data\.root", file("pictures")),
    Case("folder empty", FOLDER, r"pictures has no folders, but two classes", lambda here: (here / "pictures").mkdir()),
    Case(
        "folder of one class",
        FOLDER,
        r"has only one folder, cat, but two classes",
        lambda here: tiny.write_image_folder(here / "pictures", ("cat",)),
    ),
    Case(
        "folder nested",
        FOLDER,
        r"a has no images, only folders \(deep, \.\.\.\)\. Images must lie",
        folder("a", "b", inside="deep"),
    ),
    Case(
        "folder with an empty class",
        FOLDER,
        r"wolf has no images\. Images must lie",
        lambda here: (pictures(here) / "wolf").mkdir(),
    ),
    Case("folder unreadable", FOLDER, r"can be decoded", unreadable()),
    Case(
        "folder strict",
        (*FOLDER, "--data.strict", "true"),
        r"0003\.png cannot be decoded .*--data\.strict false",
        unreadable("0003.png"),
    ),
    Case(
        "folder with one picture each",
        FOLDER,
        r"--data\.test_split 0\.1 needs at least one image of each class in both parts",
        lambda here: tiny.write_image_folder(here / "pictures", count=1),
    ),
    Case(
        "splits of other classes",
        FOLDER,
        r"must have the same class folders; only one of them has",
        lambda here: (
            tiny.write_image_folder(here / "pictures/train"),
            tiny.write_image_folder(here / "pictures/test", ("cat", "wolf")),
        ),
    ),
]

OPTIONS = [
    Case("val_split above one", (*FIT, "--data.val_split", "1.5"), r"--data\.val_split must be a fraction .*got 1\.5"),
    Case(
        "val_split below zero", (*FIT, "--data.val_split", "-0.1"), r"--data\.val_split must be a fraction .*got -0\.1"
    ),
    Case(
        "val_split no number",
        (*FIT, "--data.val_split", "half"),
        r"--data\.val_split: got 'half', expected a whole number or a number$",
    ),
    Case(
        "val_split too large",
        (*FIT, "--data.val_split", "4000"),
        r"--data\.val_split 4000 would cut 4000 of 4000 images.*Choose a number between 10 and 3990",
    ),
    Case(
        "val_split too small to stratify", (*FIT, "--data.val_split", "7"), r"--data\.val_split 7 would cut 7 of 4000"
    ),
    Case("batch_size zero", (*FIT, "--data.batch_size", "0"), r"--data\.batch_size must be at least 1, got 0"),
    Case("batch_size below zero", (*FIT, "--data.batch_size", "-4"), r"--data\.batch_size must be at least 1, got -4"),
    Case(
        "batch_size no number",
        (*FIT, "--data.batch_size", "two"),
        r"--data\.batch_size: got 'two', expected a whole number$",
    ),
    Case(
        "batch_size one for batch norm",
        ("fit", "--data.batch_size", "1"),
        r"CNN has batch normalisation.*set --data\.batch_size to at least 2",
    ),
    Case(
        "num_workers below zero", (*FIT, "--data.num_workers", "-1"), r"--data\.num_workers must be at least 0, got -1"
    ),
    Case("seed below zero", (*FIT, "--data.seed", "-1"), r"--data\.seed must be at least 0, got -1"),
    Case("image_size zero", (*FIT, "--data.image_size", "0"), r"--data\.image_size must be at least 1, got 0"),
    Case("image_size absurd", (*FIT, "--data.image_size", "1000000"), r"--data\.image_size"),
    Case(
        "image too small for the network",
        ("fit", "--model.backbone", "Conv4"),
        r"at least 46 x 46 .*set --data\.image_size",
    ),
    Case(
        "mean of other channels",
        (*FIT, "--data.mean", "[0.5, 0.5]"),
        r"--data\.mean has 2 values, but the images have 1",
    ),
    Case("std zero", (*FIT, "--data.std", "[0]"), r"--data\.std must be positive"),
    Case(
        "a folder in place of a data set",
        (*FIT, "--data", "pictures"),
        r"--data pictures: unknown; your own pictures are --data ImageFolder --data\.root pictures\. Known",
        lambda here: tiny.write_image_folder(here / "pictures"),
    ),
    Case(
        "a file in place of a data set",
        (*FIT, "--data", "digits.npz"),
        r"--data digits\.npz: .*; your own arrays are --data ArrayFile --data\.path digits\.npz",
    ),
    Case(
        "a network of torchvision",
        ("fit", "--model.backbone", "resnet50"),
        r"resnet50: unknown; --model\.backbone Torchvision --model\.backbone\.name resnet50 is the one of torchvision",
    ),
    Case("unknown data set", (*FIT, "--data", "MNSIT"), r"--data MNSIT: unknown; did you mean MNIST"),
    Case(
        "unknown network",
        ("fit", "--model.backbone", "LeNet"),
        r"--model\.backbone LeNet: unknown; did you mean LeNet5",
    ),
    Case("unknown module", ("fit", "--model.backbone", "nowhere.Net"), r"nowhere\.Net: No module named 'nowhere'"),
    Case(
        "unknown class of a module",
        ("fit", "--model.backbone", "vision_zoo.backbones.LeNt5"),
        r"has no LeNt5; did you mean LeNet5",
    ),
    Case("not a network", ("fit", "--model.backbone", "tests.test_bad_input.NotANetwork"), r"NotANetwork"),
    Case(
        "network without an image shape",
        ("fit", "--model.backbone", "torch.nn.Linear"),
        r"first two parameters are the image shape",
    ),
    Case(
        "option of no network",
        (*FIT, "--model.backbone.colour", "red"),
        r"there is no option --model\.backbone\.colour",
    ),
    Case(
        "network option out of range",
        ("fit", "--model.backbone", "SimpleCNN", "--model.backbone.drop_rate", "2"),
        r"drop_rate is 2\.0, set --model\.backbone\.drop_rate",
    ),
    Case(
        "unknown torchvision network",
        ("fit", "--model.backbone", "Torchvision", "--model.backbone.name", "resnet19"),
        r"no network is named 'resnet19'; did you mean",
    ),
    Case(
        "pretrained weights without network",
        ("fit", "--model.backbone", "Torchvision", "--model.backbone.weights", "DEFAULT", "--data.image_size", "64"),
        r"the weights IMAGENET1K_V1 of resnet18 could not be fetched from .*leave out --model\.backbone\.weights",
    ),
    Case(
        "folder as data",
        ("fit", "--data", "./photos"),
        r"--data \./photos: not a class path.*your own pictures are --data ImageFolder --data\.root \./photos",
    ),
    Case(
        "file as network",
        ("fit", "--model.backbone", "../my_network.py"),
        r"--model\.backbone \.\./my_network\.py: not a class path; write package\.module\.Class",
    ),
    Case("module as data", ("fit", "--data", "vision_zoo.data.cifar"), r"vision_zoo\.data\.cifar: this is a module"),
    Case("seed below 0", (*FIT, "--seed_everything", "-1"), r"--seed_everything must be a whole number from 0 to"),
    Case("seed that is none", (*FIT, "--seed_everything", "true"), r"--seed_everything true names no seed: give a"),
    Case("seed that is a time", (*FIT, "--seed_everything", "20250131123045"), r"--seed_everything must be a whole"),
    Case(
        "options beside a class",
        (*FIT, "--model.optimizer", "{class_path: SGD, lr: 0.5}"),
        r"--model\.optimizer: lr beside class_path SGD: its options go under init_args",
    ),
    Case(
        "options that are a list",
        (*FIT, "--model.optimizer", "{class_path: SGD, init_args: [1]}"),
        r"--model\.optimizer: the init_args of SGD are not options: \[1\]",
    ),
    Case(
        "misspelt option beside another data set",
        ("fit", "--config", "one.yaml", "--config", "two.yaml"),
        r"image_szie",
        lambda here: [
            (here / "one.yaml").write_text("model: {backbone: LeNet5}\ndata: {class_path: MNIST}\n"),
            (here / "two.yaml").write_text("data: {class_path: MNIST5k, init_args: {image_szie: 32}}\n"),
        ],
    ),
    Case(
        "schedule shorter than the run",
        (*FIT, *ONE_CYCLE, "--model.scheduler.total_steps", "2"),
        r"OneCycleLR ends after 2 steps, and the run has 3: leave its total_steps out",
    ),
    Case(
        "validation after more batches than there are",
        (*FIT, "--trainer.val_check_interval", "4"),
        r"--trainer\.val_check_interval 4 is more than the batches of an epoch.*check_val_every_n_epoch null",
    ),
    Case(
        "early stopping without validation",
        (*FIT, "--trainer.limit_val_batches", "0", "--trainer.callbacks", STOPPING),
        r"EarlyStopping: there is no metric val/loss",
    ),
    *(
        Case(
            f"a name that the run needs, {option}",
            (*FIT, "--trainer.callbacks", f"[{{class_path: ModelCheckpoint, init_args: {{{option}}}}}]"),
            r"--trainer\.callbacks ModelCheckpoint with .* would replace a checkpoint of the run's own",
        )
        for option in ("filename: best", "filename: last", "save_last: true")
    ),
    Case(
        "a callback whose masks would be in the checkpoints",
        (*FIT, "--trainer.callbacks", "[{class_path: ModelPruning, init_args: {pruning_fn: l1_unstructured}}]"),
        r"--trainer\.callbacks ModelPruning does not work here: .*torch\.nn\.utils\.prune",
    ),
    Case(
        "less than one batch to overfit",
        (*FIT, "--trainer.overfit_batches", "0.001"),
        r"--trainer\.overfit_batches 0\.001 is less than one batch: set it higher",
    ),
    Case(
        "averaged weights that would be lost",
        (*FIT, "--trainer.callbacks", "[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}]"),
        r"StochasticWeightAveraging: LeNet5 has no batch normalisation.*take EMAWeightAveraging",
    ),
    Case(
        "no pictures to test with",
        (*FOLDER, "--data.test_split", "0"),
        r"ImageFolder has no test images: leave the test out with --test_after_fit false; .* --data\.help ImageFolder",
        lambda here: tiny.write_image_folder(here / "pictures", count=20),
    ),
    Case(
        "no arrays to test with",
        ARRAYS,
        r"ArrayFile has no test images",
        npz(x_train=np.zeros((20, 28, 28), np.uint8), y_train=np.arange(20) % 2),
    ),
    Case("weights missing", (*FIT, "--model.weights", "own.pth"), r"own\.pth not found"),
    Case(
        "weights of another network",
        (*FIT, "--model.weights", "own.pth"),
        r"own\.pth does not fit LeNet5: lacks",
        lambda here: torch.save(SmallCNN((1, 28, 28), 10).state_dict(), here / "own.pth"),
    ),
    Case(
        "weights of other classes",
        (*FIT, "--model.weights", "own.pth"),
        r"head\.2\.weight \(5, 84\) instead of \(10, 84\)",
        lambda here: torch.save(LeNet5((1, 28, 28), 5).state_dict(), here / "own.pth"),
    ),
    Case(
        "weights in half a safetensors file",
        (*FIT, "--model.weights", "own.safetensors"),
        r"own\.safetensors is not a whole safetensors file",
        lambda here: (here / "own.safetensors").write_bytes(save(LeNet5((1, 28, 28), 10).state_dict())[:99_000]),
    ),
    Case(
        "label_smoothing",
        (*FIT, "--model.label_smoothing", "2"),
        r"--model\.label_smoothing must be in \[0, 1\), got 2\.0",
    ),
    Case("unknown optimizer", (*FIT, "--model.optimizer", "Adm"), r"did you mean Adam"),
    Case("unknown schedule", (*FIT, "--model.scheduler", "OneCycle"), r"did you mean OneCycleLR"),
    Case("lr zero", (*FIT, "--model.optimizer.lr", "0"), r"--model\.optimizer\.lr is 0"),
    Case(
        "lr below zero",
        (*FIT, "--model.optimizer.lr", "-0.1"),
        r"--model\.optimizer cannot be used so: Invalid learning rate: -0\.1",
    ),
    Case("lr not a number", (*FIT, "--model.optimizer.lr", ".nan"), r"--model\.optimizer.*nan"),
    Case("lr infinite", (*FIT, "--model.optimizer.lr", ".inf"), r"--model\.optimizer\.lr is inf"),
    Case(
        "lr in words", (*FIT, "--model.optimizer.lr", "fast"), r"--model\.optimizer\.lr: got 'fast', expected a number$"
    ),
    Case(
        "momentum below zero",
        (*FIT, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "-1"),
        r"--model\.optimizer.*momentum",
    ),
    Case(
        "augmentation that changes the size",
        (*FIT, "--data.augmentation", "[{class_path: CenterCrop, init_args: {size: 9}}]"),
        r"--data\.augmentation: CenterCrop turns",
    ),
    Case(
        "misspelt option of an augmentation",
        (*FIT, "--data.augmentation", "[{class_path: RandomCrop, init_args: {paddin: 4}}]"),
        r"--data\.augmentation: RandomCrop has no option paddin; did you mean padding or padding_mode",
    ),
    Case(
        "option of an augmentation that takes no such one",
        (*FIT, "--data.augmentation", "[{class_path: RandomCrop, init_args: {size: 40}}]"),
        r"--data\.augmentation: RandomCrop has no option size; it takes padding",
    ),
    Case(
        "misspelt option of a callback",
        (*FIT, "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitr: val/loss}}]"),
        r"--trainer\.callbacks: EarlyStopping has no option monitr; did you mean monitor",
    ),
    Case(
        "augmentation to look at that fails",
        ("show", "--augmented", "true", "--data.augmentation", CROP_TOO_LARGE),
        r"--data\.augmentation",
    ),
    Case(
        "trusted package that is no YAML",
        ("test", "--ckpt_path", "best", "--trusted_packages", "["),
        r"--trusted_packages \[: give the name of a package",
    ),
    Case(
        "augmentation that takes the image for a batch",
        (*FIT, "--data.augmentation", f"[{__name__}.OneMoreAxis]"),
        r"OneMoreAxis turns .* shape \(1, 28, 28\) into .* \(1, 1, 28, 28\); .* It gets one image",
    ),
    Case(
        "metric whose lowest value is the worst",
        (*FIT, "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/accuracy"),
        r"EarlyStopping: it takes the lowest val/accuracy for the best: set --trainer\.callbacks\.mode max",
    ),
    Case(
        "metric of another name",
        (*FIT, "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: val_loss}}]"),
        r"EarlyStopping: there is no metric val_loss; did you mean val/loss",
    ),
    Case(
        "metric of a validation that there is none of",
        (*FIT, "--data.val_split", "0", "--trainer.callbacks", STOPPING),
        r"there is no metric val/loss, for nothing is validated: --data\.val_split is 0",
    ),
    Case(
        "schedule with a share above one",
        (*FIT, *ONE_CYCLE, "--model.scheduler.pct_start", "2"),
        r"--model\.scheduler cannot be used so: .*pct_start",
    ),
    Case(
        "schedule that steps after no epochs",
        (*FIT, "--model.scheduler", "StepLR", "--model.scheduler.step_size", "0"),
        r"--model\.scheduler cannot be used so: .*zero",
    ),
    Case("infinite val_split", (*FIT, "--data.val_split", ".inf"), r"--data\.val_split must be a fraction"),
    Case("std that is no number", (*FIT, "--data.std", "[.nan]"), r"--data\.std must be finite"),
    Case("metrics never counted", (*FIT, "--trainer.log_every_n_steps", "0"), r"--trainer\.log_every_n_steps is 0"),
    Case("no test batches", (*FIT, "--trainer.limit_test_batches", "0"), r"limit_test_batches is 0.*test_after_fit"),
    Case("config without a value", (*FIT, "--config"), r"--config needs a value"),
    Case(
        "unknown augmentation",
        (*FIT, "--data.augmentation", "[RandomCorp]"),
        r"--data\.augmentation RandomCorp: unknown; did you mean RandomCrop",
    ),
    Case(
        "what the module of augmentations imports",
        (*FIT, "--data.augmentation", "F"),
        r"--data\.augmentation F: unknown\. Known are AugMix, AutoAugment, CenterCrop,",
    ),
    Case(
        "whole number in words",
        (*FIT[:3], "--trainer.max_epochs", "many"),
        r"--trainer\.max_epochs: got 'many', expected a whole number",
    ),
    Case(
        "one class only",
        ARRAYS,
        r"two classes or more are needed, but the data has 1",
        lambda here: np.savez(here / "a.npz", images=np.zeros((40, 28, 28), np.uint8), labels=np.zeros(40, int)),
    ),
    Case("no time at all", (*FIT, "--trainer.max_time", "00:00:00:00"), r"--trainer\.max_time is 0"),
    Case(
        "a callback for another kind of module",
        (*FIT, "--trainer.callbacks", "LearningRateFinder"),
        r"--trainer\.callbacks LearningRateFinder does not work here: try some values of --model\.optimizer\.lr",
    ),
    Case(
        "a callback that looks for a backbone and a head",
        (*FIT, "--trainer.callbacks", "BackboneFinetuning"),
        r"--trainer\.callbacks BackboneFinetuning does not work here: .* Derive a class of your own",
    ),
    Case(
        "a callback without its logger",
        (*FIT, "--trainer.callbacks", "DeviceStatsMonitor"),
        r"--trainer\.callbacks DeviceStatsMonitor needs a logger that is named: add --trainer\.logger",
    ),
    Case("an optimizer for other gradients", (*FIT, "--model.optimizer", "SparseAdam"), r"SparseAdam is for sparse"),
    Case(
        "an optimizer for the plain order only",
        (*FIT, "--model.optimizer", "LBFGS", "--model.scheduler", "null", "--channels_last", "true"),
        r"--channels_last true: the optimizer needs the plain order",
    ),
    Case(
        "a schedule for a metric that rises",
        (*FIT, "--model.scheduler", "ReduceLROnPlateau", "--model.scheduler.mode", "max"),
        r"--model\.scheduler\.mode max: it watches the loss, which is better the lower it is",
    ),
    Case(
        "a schedule of numpy's numbers",
        (*FIT, "--model.scheduler", "LambdaLR", "--model.scheduler.lr_lambda", "tests.test_bad_input.half"),
        r"--model\.scheduler has a state that no checkpoint could be continued from.*made Python's with float\(\)",
    ),
    Case(
        "a schedule that cannot be saved",
        (*FIT, "--model.scheduler", "LambdaLR", "--model.scheduler.lr_lambda", "math.sqrt"),
        r"--model\.scheduler cannot be saved with a function that is built into Python: write one of your own",
    ),
    Case(
        "a schedule of schedules",
        (*FIT, "--model.scheduler", "SequentialLR"),
        r"--model\.scheduler SequentialLR: unknown.*a class of your own is named with its module",
    ),
    Case("epochs below minus one", (*FIT[:3], "--trainer.max_epochs", "-5"), r"max_epochs"),
    Case(
        "misspelt option",
        (*FIT, "--trainer.max_epoch", "3"),
        r"there is no option --trainer\.max_epoch; did you mean --trainer\.max_epochs",
    ),
    Case("option without a value", (*FIT, "--data.batch_size"), r"--data\.batch_size needs a value"),
    Case(
        "a network in place of the model's options",
        ("fit", "--config", "m.yaml"),
        r"m\.yaml: 'model' must hold options such as backbone: LeNet5, got 'LeNet5'",
        lambda here: (here / "m.yaml").write_text("model: LeNet5\ndata: MNIST5k\n"),
    ),
    Case(
        "an average that begins late",
        (*FIT, "--trainer.callbacks", "EMAWeightAveraging", "--trainer.callbacks.update_starting_at_step", "5"),
        r"EMAWeightAveraging: .* leave out update_starting_at_step",
    ),
    Case(
        "a callback that continues without being asked",
        (*FIT, "--trainer.callbacks", "OnExceptionCheckpoint", "--trainer.callbacks.dirpath", "keep"),
        r"OnExceptionCheckpoint does not work here: the next run would resume",
    ),
    Case(
        "processes that are forked",
        (*FIT, "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"),
        r"--trainer\.strategy ddp_fork: .* Say --trainer\.strategy ddp",
    ),
    Case("word that is no option", (*FIT, "cnn"), r"'cnn' is not an option: .*, such as --config cnn"),
    Case("unknown accelerator", (*FIT, "--trainer.accelerator", "abacus"), r"abacus"),
    Case("unknown precision", (*FIT, "--trainer.precision", "12"), r"--trainer\.precision: got '12'"),
    Case(
        "half precision on a CPU",
        (*FIT, "--trainer.accelerator", "cpu", "--trainer.precision", "16-mixed"),
        r"--trainer\.precision 16-mixed: a CPU cannot; say bf16-mixed or 32-true",
    ),
    Case("unknown strategy", (*FIT, "--trainer.strategy", "warp"), r"--trainer.*warp"),
    Case("no device", (*FIT, "--trainer.devices", "0"), r"--trainer.*0"),
    Case(
        "gradients added up zero times",
        (*FIT, "--trainer.accumulate_grad_batches", "0"),
        r"--trainer\.accumulate_grad_batches is 0",
    ),
    Case(
        "no checkpoints",
        (*FIT, "--trainer.enable_checkpointing", "false"),
        r"--trainer\.enable_checkpointing false does not work here: every run keeps its checkpoints",
    ),
    Case("bare bones", (*FIT, "--trainer.barebones", "true"), r"--trainer\.barebones true does not work here"),
    Case(
        "fast_dev_run",
        (*FIT, "--trainer.fast_dev_run", "true"),
        r"--trainer\.fast_dev_run does not work here: .* --trainer\.limit_val_batches 1 .* --trainer\.max_epochs 1",
    ),
    Case(
        "to go on from the best",
        ("fit", "--ckpt_path", "best"),
        r"fit resumes where the newest run ended, with --ckpt_path last\. To go back .* path of its best\.ckpt",
    ),
    Case(
        "second bar", (*FIT, "--trainer.callbacks", "RichProgressBar"), r"RichProgressBar .*a progress bar of its own"
    ),
    Case("no epochs", (*FIT, "--trainer.max_epochs", "0"), r"--trainer\.max_epochs is 0"),
    Case("no batches", (*FIT, "--trainer.limit_train_batches", "0"), r"--trainer\.limit_train_batches is 0"),
    Case("save_every_minutes zero", (*FIT, "--save_every_minutes", "0"), r"--save_every_minutes must be positive"),
    Case("seed in words", (*FIT, "--seed_everything", "lucky"), r"seed_everything"),
    Case(
        "run folder below a file",
        (*FIT, "--trainer.default_root_dir", "file"),
        r"run folder below .*file.* cannot be written.*--trainer\.default_root_dir",
        file("file"),
    ),
    Case("runs is a file", FIT, r"run folder below .* cannot be written.*--trainer\.default_root_dir", file("runs")),
]

MINE = ("fit", "--config", "mine.yaml")
CONFIGS = [
    Case("config missing", MINE, r"--config mine\.yaml: there is no such file or shipped recipe"),
    Case("recipe misspelt", ("fit", "--config", "lenet5_mnst"), r"did you mean lenet5_mnist"),
    Case("config a folder", MINE, r"mine\.yaml is a folder", lambda here: (here / "mine.yaml").mkdir()),
    Case("config empty", MINE, r"mine\.yaml is empty", config("")),
    Case("config binary", MINE, r"mine\.yaml cannot be read", config(bytes(range(256)))),
    Case("config with control characters", MINE, r"mine\.yaml is not valid YAML", config(b"a: \x00\x01")),
    Case("config broken", MINE, r"mine\.yaml is not valid YAML", config("model: {backbone: [")),
    Case("config of words", MINE, r"mine\.yaml must hold options as 'name: value'", config("just words")),
    Case("config a list", MINE, r"mine\.yaml must hold options as 'name: value', got list", config("- model")),
    Case("config section a number", MINE, r"'model' must hold options", config("model: 3")),
    Case(
        "config section a list", MINE, r"'data' must hold options", config("data: [MNIST5k]\nmodel: {backbone: LeNet5}")
    ),
    Case(
        "config section unknown",
        MINE,
        r"there is no option --modell",
        config("modell: {backbone: LeNet5}\ndata: MNIST5k"),
    ),
    Case(
        "config option unknown",
        MINE,
        r"there is no option --model\.colour",
        config("model: {backbone: LeNet5, colour: red}\ndata: MNIST5k"),
    ),
    Case("config without data", MINE, r"--data must be given", config("model: {backbone: LeNet5}")),
    Case("config without a network", MINE, r"--model\.backbone must be given", config("data: MNIST5k")),
    Case(
        "config of another version",
        MINE,
        r"there is no option --trainer\.gpus",
        config("model: {backbone: LeNet5}\ndata: MNIST5k\ntrainer: {gpus: 1}"),
    ),
    Case("config with number for a class", MINE, r"backbone", config("model: {backbone: 3}\ndata: MNIST5k")),
    Case(
        "config with a tag",
        MINE,
        r"is not valid YAML: could not determine a constructor",
        config("model: {backbone: !mine LeNet5}\ndata: MNIST5k"),
    ),
    Case(
        "config with a number for a name",
        MINE,
        r"3 is not a name",
        config("model: {backbone: LeNet5}\ndata: MNIST5k\n3: 4"),
    ),
    Case("command misspelt", ("fti",), r"there is no command 'fti'; did you mean fit"),
]


def lock(here: Path) -> None:
    handle = (here / "run/.lock").open("w")
    fcntl.flock(handle, fcntl.LOCK_EX)
    _held.append(handle)


_held: list[object] = []


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


def half(epoch):
    return np.float64(0.5)


OFFER = r"last\.ckpt .*The next older good checkpoint is .*run/checkpoints/best\.ckpt: --ckpt_path .*best\.ckpt"
CHECKPOINTS = [
    Case("no checkpoint", ("test",), r"test needs a trained network: --ckpt_path"),
    Case("no checkpoint to validate", ("validate",), r"validate needs a trained network"),
    Case("no checkpoint to export", ("export",), r"export needs a trained network"),
    Case("no run yet", ("test", "--ckpt_path", "best"), r"no run with a checkpoint below"),
    Case("no run to continue", ("fit", "--ckpt_path", "last"), r"no run with a checkpoint below"),
    Case("checkpoint missing", ("test", "--ckpt_path", "x.ckpt"), r"--ckpt_path x\.ckpt: .*x\.ckpt not found"),
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
        r"alone\.ckpt holds weights alone .* take last\.ckpt, or start a new run with --model\.weights .*alone\.ckpt",
        changed("alone.ckpt", lambda c: [c.pop(name) for name in ("optimizer_states", "lr_schedulers", "loops")]),
    ),
    Case(
        "more epochs done than asked for",
        ("fit", "--ckpt_path", "run/checkpoints/far.ckpt"),
        r"the run is beyond --trainer\.max_epochs 2 already: set it higher to continue",
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
    Case("predict without pictures", ("predict", *CKPT), r"predict needs pictures: --images"),
    Case("predict without a checkpoint", ("predict", "--images", "."), r"predict needs a trained network: --ckpt_path"),
    Case("picture missing", ("predict", *CKPT, "--images", "gone.png"), r"--images gone\.png: .*gone\.png not found"),
    Case(
        "folder without pictures",
        ("predict", *CKPT, "--images", "empty"),
        r"--images empty: no pictures in",
        lambda here: (here / "empty").mkdir(),
    ),
    Case(
        "picture unreadable",
        ("predict", *CKPT, "--images", "a.png"),
        r"cannot read the file as a picture",
        file("a.png", "no picture"),
    ),
    Case(
        "output a folder",
        ("predict", *CKPT, "--images", "a.png", "--output", "run"),
        r"--output run is a folder",
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
]

CATALOGUE = [*DATA, *OPTIONS, *CONFIGS, *CHECKPOINTS]


@pytest.mark.parametrize("case", CATALOGUE, ids=[case.name for case in CATALOGUE])
def test_bad_input_is_refused_with_one_message_and_changes_nothing(case, here, capsys, request):
    if any("run" in word for word in case.words) or case.name in ("truncated",):
        shutil.copytree(request.getfixturevalue("trained_run"), here / "run")
        capsys.readouterr()
    case.prepare(here)
    before = tree(here)
    refuse(capsys, case.words, case.message)
    assert tree(here) == before
    _held.clear()


def test_the_catalogue_is_long_enough_and_names_its_cases_apart():
    assert len({case.name for case in CATALOGUE}) == len(CATALOGUE) >= 60


# ------------------------------------------------------------------------------------------------ what works after all


def test_a_batch_larger_than_the_data_is_one_batch(here):
    tiny.write_mnist(here / "data", 40, 20)
    words = [*FIT, "--data", "MNIST", "--data.batch_size", "100000", "--data.val_split", "10"]
    assert main([*words, "--model.scheduler", "null"]) == 0


def test_class_folders_may_be_named_in_any_script(here):
    tiny.write_image_folder(here / "pictures", ("ねこ", "Äpfel", "собака", "कुत्ता", "قط", "a b'c\"d"))
    assert main([*FOLDER, "--data.val_split", "6", "--test_after_fit", "false"]) == 0
    names = torch.load(here / "runs/default/version_0/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert set(names["class_names"]) == {"ねこ", "Äpfel", "собака", "कुत्ता", "قط", "a b'c\"d"}


# ------------------------------------------------------------------------------------- what shows only while training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.log_every_n_steps", "2"], r"the training loss is (nan|inf) at step \d+ \(epoch [01]\)"),
        (
            ["--trainer.log_every_n_steps", "50"],
            r"(loss is (nan|inf)|are not finite) (at|after) step \d+ \(epoch [01]\)",
        ),
        (["--data.val_split", "0"], r"(loss is (nan|inf)|are not finite) (at|after) step \d+ \(epoch [01]\)"),
    ],
    ids=["at once", "at the epoch's end", "without validation"],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    words, message, here, capsys, monkeypatch
):
    original = LeNet5.forward

    def forward(self, images):
        # From the second epoch on, the loss explodes.
        return original(self, images) * (1e38 if self.training and self.steps > 10 else 1)

    monkeypatch.setattr(LeNet5, "steps", 0, raising=False)
    monkeypatch.setattr(LeNet5, "forward", forward)
    monkeypatch.setattr("vision_zoo.training.run_folder.RunFolder.on_train_batch_end", counted(LeNet5), raising=True)
    command = [*FIT[:3], "--trainer.limit_train_batches", "8", "--trainer.max_epochs", "3", "--model.scheduler", "null"]
    error = refuse(capsys, (*command, *words), message, code=1)
    assert "What was saved before is kept" in error
    last = torch.load(here / "runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert not list((here / "runs").rglob("*.tmp"))


def counted(network: type) -> Callable[..., None]:
    original = RunFolder.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        network.steps = trainer.global_step
        original(self, trainer, *rest)

    return on_train_batch_end


def test_an_absurd_learning_rate_ends_with_a_message_and_leaves_no_bad_checkpoint(here, capsys):
    words = (*FIT[:3], "--model.optimizer", "SGD", "--model.optimizer.lr", "1e38", "--model.scheduler", "null")
    refuse(capsys, (*words, "--trainer.limit_train_batches", "8"), r"not finite|loss is (nan|inf)", code=1)
    for path in (here / "runs").rglob("*.ckpt"):
        values = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in values)


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(here, capsys, monkeypatch):
    original, saved = torch.save, []

    def fills_up(state, file):
        if isinstance(file, Path):  # on the disk
            saved.append(1)
            if len(saved) > 1:
                full()
        original(state, file)

    monkeypatch.setattr("torch.save", fills_up)
    words = (*FIT[:3], "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4", "--model.scheduler", "null")
    refuse(capsys, words, r"best\.ckpt could not be written: .*No space left .*the previous best\.ckpt is kept", code=1)
    last = torch.load(here / "runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert not list((here / "runs").rglob("*.tmp"))


def test_a_disk_that_is_full_from_the_start_is_named(here, capsys, monkeypatch):
    monkeypatch.setattr("os.fsync", full)
    refuse(capsys, FIT, r"config\.yaml could not be written: No space left on device", code=1)
    assert not list((here / "runs").rglob("*.tmp"))


def test_predictions_onto_a_full_device_are_named(here, capsys, trained_run):
    Image.new("L", (28, 28)).save("a.png")
    words = ("predict", "--ckpt_path", str(trained_run), "--images", "a.png", "--output", "/dev/full")
    refuse(capsys, words, r"/dev/full could not be written \(No space left on device\)", code=1)


def test_a_checkpoint_that_was_offered_continues_the_run(here, capsys, trained_run):
    shutil.copytree(trained_run, here / "run")
    broken("last.ckpt", 5000)(here)
    error = refuse(capsys, ("test", "--ckpt_path", "run/checkpoints/last.ckpt"), OFFER)
    offered = re.search(r"--ckpt_path (\S+)$", error.strip())[1]
    assert main(["validate", "--ckpt_path", offered]) == 0
