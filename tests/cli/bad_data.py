"""Bad input: files of data sets that are missing, broken, or of another kind."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests import tiny
from tests.cli.cases import ARRAYS, FIT, FOLDER, Case, Prepare, file, npz, pictures

MNIST = (*FIT, "--data", "MNIST")
CIFAR = (*FIT, "--data", "CIFAR10")
IMAGES, LABELS = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"


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


def folder(*names: str, inside: str = "") -> Prepare:
    def prepare(here: Path) -> None:
        for name in names:
            tiny.write_image_folder(here / "pictures" / name, (inside,) if inside else ("cat", "dog"))

    return prepare


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
        "idx truncated", MNIST, r"is broken \(.*size 31351 into shape \(40,28,28\)", mnist(IMAGES, lambda old: old[:-9])
    ),
    Case("idx too long", MNIST, r"is broken \(.*size 31361 into shape", mnist(IMAGES, lambda old: old + b"x")),
    Case(
        "idx wrong magic",
        MNIST,
        r"not an IDX file of 3 dimension\(s\): it starts with 3c68746d",
        mnist(IMAGES, lambda old: b"<html>" + old),
    ),
    Case("idx header cut", MNIST, r"is broken \(buffer is smaller", mnist(IMAGES, lambda old: old[:7])),
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
        r"train labels from 10 to 10, but the 10 classes have 0 to 9, in ",
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
        r"no train images, in",
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
        r"train labels from 0 to 10, but",
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
    Case("npz empty", ARRAYS, r"a\.npz is broken \(File is not a zip file.*--data\.path", file("a.npz")),
    Case("npz truncated", ARRAYS, r"a\.npz is broken", truncated_npz),
    Case("npz damaged", ARRAYS, r"a\.npz is broken .*CRC", damaged_npz),
    Case(
        "npz counts differ",
        ARRAYS,
        r"labels .* of shape \(5,\), but one word, or one whole number",
        npz(images=npz_images(), labels=TEN[:5]),
    ),
    Case(
        "npz labels below zero",
        ARRAYS,
        r"one whole number, 0 or more, is needed",
        npz(images=npz_images(), labels=TEN - 1),
    ),
    Case(
        "npz not numbers",
        ARRAYS,
        r"some of images in .* are not numbers\. Save the images as np\.nan_to_num\(images\)",
        npz(images=npz_images(dtype=float) * np.nan, labels=TEN),
    ),
    Case("npz without labels", ARRAYS, r"no train images with labels; it has images\. Name", npz(images=npz_images())),
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
        r"a has no images; left out: 1 inside of class folders \(deep\)\. Images must lie",
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
        r"--data\.test_split needs at least one image of each class in both parts",
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
