"""MNIST and its successors in the IDX format: 28x28 gray images."""

import gzip
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import refuse
from vision_zoo.types import LabelledImages, Split

DIGITS = tuple(string.digits)
MOST_BYTES = 2**30  # of an IDX file; the largest published one has 640 million


class MNIST(ImageDataModule):
    """Handwritten digits, 60,000 + 10,000 (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist/)."""

    class_names = DIGITS
    image_shape = (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)

    torchvision_class = datasets.MNIST
    folder = "MNIST/raw"
    endings = ("", ".gz")
    names: Mapping[str, Sequence[str]] = {
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 1, 28, 28) in [0, 255] and int64 (N,) in [0, K)."""
        images, labels = (self._read_idx(name) for name in self.names[split])
        return LabelledImages(images[:, None], labels.long())

    def _read_idx(self, name: str) -> Tensor:
        path = self.root / self.folder / name
        path = path if path.is_file() else path.with_name(f"{name}.gz")
        dimensions = int(name.partition("-idx")[2][0])  # the name says how many there are
        with self._reading(path):
            return read_idx(path, dimensions, (28, 28) if "images" in name else ())


class FashionMNIST(MNIST):
    """Photos of clothes, 60,000 + 10,000 (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""

    class_names = (
        *("T-Shirt", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle Boot"),
    )
    mean, std = (0.2860,), (0.3530,)
    torchvision_class = datasets.FashionMNIST
    folder = "FashionMNIST/raw"


class KMNIST(MNIST):
    """Cursive Japanese characters, 60,000 + 10,000 (Clanuwat et al. 2018, https://arxiv.org/abs/1812.01718)."""

    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    mean, std = (0.1918,), (0.3483,)
    torchvision_class = datasets.KMNIST
    folder = "KMNIST/raw"


class QMNIST(MNIST):
    """MNIST rebuilt with all 60,000 test digits (Yadav and Bottou 2019, https://arxiv.org/abs/1905.10498)."""

    torchvision_class = datasets.QMNIST
    torchvision_options = ({"train": True}, {"train": False})
    folder = "QMNIST/raw"
    names: Mapping[str, Sequence[str]] = {
        split: (f"qmnist-{split}-images-idx3-ubyte", f"qmnist-{split}-labels-idx2-int") for split in ("train", "test")
    }

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 1, 28, 28) in [0, 255] and int64 (N,) in [0, 10)."""
        images, labels = super().load(split)
        return LabelledImages(images, labels[:, 0])  # the other columns say who wrote the digit


class EMNIST(MNIST):
    """Handwritten letters and digits in six selections (Cohen et al. 2017, https://arxiv.org/abs/1702.05373).

    Args:
        root: folder that holds the files, or where they are downloaded to.
        split_name: which selection: byclass (62 classes), bymerge and balanced (47, without the small letters that look
            like their capitals), letters (26), digits or mnist (10).
    """

    class_names = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")
    mean, std = (0.174,), (0.332,)  # of all six selections, to three digits
    torchvision_class = datasets.EMNIST
    folder = "EMNIST/raw"

    def __init__(
        self,
        root: str = "data",
        *,
        split_name: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced",
        **options: Any,
    ) -> None:
        self.split_name = split_name
        self.torchvision_options = [{"split": split_name}]
        self.names = {
            split: [f"emnist-{split_name}-{split}-{kind}" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
            for split in ("train", "test")
        }
        byclass, letters = (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase), tuple(string.ascii_lowercase)
        others = {"byclass": byclass, "letters": letters, "digits": DIGITS, "mnist": DIGITS}
        self.class_names = others.get(split_name, self.class_names)
        super().__init__(root=root, **options)

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 1, 28, 28) in [0, 255], upright, and int64 (N,) in [0, K)."""
        images, labels = super().load(split)
        # The files hold columns, and letters are counted from 1.
        return LabelledImages(images.transpose(2, 3), labels - int(self.split_name == "letters"))


def read_idx(path: Path, dimensions: int, image_size: tuple[int, ...] = ()) -> Tensor:
    """Read an IDX file of bytes or of 32-bit integers, plain or gzipped.

    Raises:
        ValueError: if the file has another number of dimensions, another image size, or is not what its header says.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)  # a few packed kilobytes may unpack to more than any memory holds
    kinds: dict[bytes, np.dtype[Any]] = {b"\0\0\x08": np.dtype(np.uint8), b"\0\0\x0c": np.dtype(">i4")}
    foreign = content[:3] not in kinds or content[3:4] != bytes([dimensions])
    refuse(
        ValueError,
        (len(content) > MOST_BYTES, f"more than {MOST_BYTES:,} bytes"),
        (not content, "the file is empty"),
        (foreign, f"not an IDX file of {dimensions} dimension(s): it starts with {content[:4].hex()}"),
    )
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    array = np.frombuffer(content, kinds[content[:3]], offset=4 + 4 * dimensions).reshape(shape)
    other = f"images of {'x'.join(map(str, shape[1:]))} instead of {'x'.join(map(str, image_size))}"
    refuse(ValueError, (image_size and shape[1:] != image_size, other))
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
