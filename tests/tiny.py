"""Writes tiny data sets in the real on-disk formats, for tests that drive the real readers and the real command."""

import bz2
import gzip
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = 20  # training images of each class, and a quarter of it for testing


def digits(
    count: int, classes: int = 10, shape: tuple[int, ...] = (28, 28), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, *shape) whose brightness tells the class, so that a network can learn it, and uint8 labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    noise = rng.integers(0, 20, (count, *shape))
    return (labels.reshape(-1, *[1] * len(shape)) * (230 // classes) + noise).astype(np.uint8), labels.astype(np.uint8)


def sizes(classes: int, train: int | None, test: int | None) -> dict[str, int]:
    return {
        "train": classes * PER_CLASS if train is None else train,
        "test": classes * PER_CLASS // 4 if test is None else test,
    }


def write_idx(path: Path, array: np.ndarray, compress: bool = False) -> None:
    """IDX: two zero bytes, the type, the number of dimensions, then big-endian sizes and values."""
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if compress:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_mnist(
    root: Path, train: int | None = None, test: int | None = None, name: str = "MNIST", compress: bool = False
) -> Path:
    for seed, (split, count) in enumerate(sizes(10, train, test).items()):
        images, labels = digits(count, seed=seed)
        prefix = root / name / "raw" / ("train" if split == "train" else "t10k")
        write_idx(Path(f"{prefix}-images-idx3-ubyte"), images, compress)
        write_idx(Path(f"{prefix}-labels-idx1-ubyte"), labels, compress)
    return root


def write_fashion_mnist(root: Path, train: int | None = None, test: int | None = None) -> Path:
    return write_mnist(root, train, test, "FashionMNIST")


def write_kmnist(root: Path, train: int | None = None, test: int | None = None) -> Path:
    return write_mnist(root, train, test, "KMNIST")


def write_qmnist(root: Path, train: int | None = None, test: int | None = None) -> Path:
    for seed, (split, count) in enumerate(sizes(10, train, test).items()):
        images, labels = digits(count, seed=seed)
        table = np.zeros((count, 8), np.int32)
        table[:, 0], table[:, 2] = (
            labels,
            70_000 + labels.astype(np.int32),
        )  # the writer's number needs more than one byte
        write_idx(root / f"QMNIST/raw/qmnist-{split}-images-idx3-ubyte", images)
        write_idx(root / f"QMNIST/raw/qmnist-{split}-labels-idx2-int", table)
    return root


def write_emnist(root: Path, split_name: str = "balanced", train: int | None = None, test: int | None = None) -> Path:
    """As published: every image is transposed, and the labels of letters start at 1."""
    classes = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}[split_name]
    for seed, (split, count) in enumerate(sizes(classes, train, test).items()):
        images, labels = digits(count, classes, seed=seed)
        images[:, 0, :] = 255  # upright, the first row is white
        write_idx(root / f"EMNIST/raw/emnist-{split_name}-{split}-images-idx3-ubyte", images.transpose(0, 2, 1))
        write_idx(
            root / f"EMNIST/raw/emnist-{split_name}-{split}-labels-idx1-ubyte", labels + (split_name == "letters")
        )
    return root


def write_usps(root: Path, train: int | None = None, test: int | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(sizes(10, train, test).items()):
        images, labels = digits(count, shape=(16, 16), seed=seed)
        values = images.reshape(count, 256) / 255 * 2 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{place + 1}:{value:.6f}" for place, value in enumerate(row))
            for label, row in zip(labels, values, strict=True)
        ]
        name = "usps.bz2" if split == "train" else "usps.t.bz2"
        (root / name).write_bytes(bz2.compress("\n".join([*lines, ""]).encode()))
    return root


def write_cifar10(root: Path, train: int | None = None, test: int | None = None) -> Path:
    folder = root / "cifar-10-batches-py"
    count = sizes(10, train, test)
    images, labels = digits(count["train"], shape=(3, 32, 32))
    for number, (rows, few) in enumerate(zip(np.array_split(images, 5), np.array_split(labels, 5), strict=True), 1):
        write_cifar_batch(folder / f"data_batch_{number}", rows, labels=few.tolist())
    images, labels = digits(count["test"], shape=(3, 32, 32), seed=1)
    write_cifar_batch(folder / "test_batch", images, labels=labels.tolist())
    return root


def write_cifar100(root: Path, train: int | None = None, test: int | None = None) -> Path:
    for seed, (split, count) in enumerate(sizes(100, train, test).items()):
        images, labels = digits(count, 100, (3, 32, 32), seed)
        coarse = [label // 5 for label in labels.tolist()]
        write_cifar_batch(root / "cifar-100-python" / split, images, fine_labels=labels.tolist(), coarse_labels=coarse)
    return root


def write_cifar_batch(path: Path, images: np.ndarray, **labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump({"batch_label": path.name, "data": images.reshape(len(images), -1), **labels}, file, protocol=2)


def write_svhn(root: Path, train: int | None = None, test: int | None = None) -> Path:
    """As published: images last, and the digit 0 is called 10."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(sizes(10, train, test).items()):
        images, labels = digits(count, shape=(32, 32, 3), seed=seed)
        named = np.where(labels == 0, 10, labels)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": named})
    return root


def write_stl10(root: Path, train: int | None = None, test: int | None = None) -> Path:
    """As published: columns first, and labels from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(sizes(10, train, test).items()):
        images, labels = digits(count, shape=(3, 96, 96), seed=seed)
        images[:, :, 0, :] = 255  # upright, the first row is white
        images.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        (labels + 1).tofile(folder / f"{split}_y.bin")
    return root


def write_image_folder(
    root: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    count: int = 10,
    size: tuple[int, int] = (40, 30),
    suffix: str = ".png",
) -> Path:
    """root/CLASS/0000.png, ...; the colour tells the class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour = (label * 60 + 20, index % 200, 100)
            Image.new("RGB", size, colour).save(root / name / f"{index:04}{suffix}")
    return root


def write_tiff(path: Path, values: np.ndarray, deflate: bool = False) -> Path:
    """A TIFF by hand, (H, W) or (H, W, 3), of any type: cameras write more than PIL does."""
    height, width, *bands = values.shape
    bits, kind = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data, many = values.astype(values.dtype.newbyteorder("<")).tobytes(), len(bands)
    data = zlib.compress(data) if deflate else data
    data += bytes(len(data) % 2)
    places = {
        256: width,
        257: height,
        258: bits,
        259: 8 if deflate else 1,
        262: 1 + many,
        273: 8,
        277: 3 if many else 1,
        278: height,
    }
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in {**places, 279: len(data), 339: kind}.items()]
    after = 8 + len(data)
    if many:  # three values do not fit into an entry
        for index, value in ((2, bits), (9, kind)):
            entries[index] = entries[index][:2] + struct.pack("<HII", 3, 3, after)
            data, after = data + struct.pack("<4H", value, value, value, 0), after + 8
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", after) + data + directory)
    return path


def write_npz(
    path: Path, train: int | None = None, test: int | None = None, shape: tuple[int, ...] = (28, 28, 3)
) -> Path:
    """In MedMNIST's form, without a validation part."""
    arrays = {}
    for seed, (split, count) in enumerate(sizes(10, train, test).items()):
        images, labels = digits(count, shape=shape, seed=seed)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path
