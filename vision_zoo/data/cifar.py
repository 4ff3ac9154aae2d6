"""CIFAR-10 and CIFAR-100: 32x32 colour photos (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)."""

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torchvision import datasets
from torchvision.datasets.utils import check_md5

from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import refuse
from vision_zoo.types import LabelledImages, Split

# What unpickling damaged bytes has been seen to raise; the unpickler below calls nothing but numpy's array builder.
_BROKEN = (
    *(pickle.UnpicklingError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, OverflowError, MemoryError, ImportError, NotImplementedError),
)


class CIFAR10(ImageDataModule):
    """Photos of ten kinds of animals and vehicles, 50,000 + 10,000."""

    class_names: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    image_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    torchvision_class: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    folder = "cifar-10-batches-py"
    names: ClassVar[dict[str, list[str]]] = {
        "train": [f"data_batch_{number}" for number in range(1, 6)],
        "test": ["test_batch"],
    }
    key: ClassVar[str] = "labels"

    def files(self) -> list[str]:
        """The pickled batches."""
        return [*self.names["train"], *self.names["test"]]

    def download(self, root: Path) -> None:
        """Fetch and unpack the archive with torchvision."""
        self.torchvision_class(root, download=True)

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 3, 32, 32) in [0, 255] and int64 (N,) in [0, K)."""
        paths = [self.root / self.folder / name for name in self.names[split]]
        parts = []
        for path in paths:
            with self._reading(path, _BROKEN):
                parts.append(_read_batch(path, self.key))
        self._compare_checksums(paths, split)
        return LabelledImages(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _compare_checksums(self, paths: list[Path], split: str) -> None:
        published = dict(getattr(self.torchvision_class, f"{split}_list"))
        if not all(check_md5(str(path), published[path.name]) for path in paths):
            self.note = "JPEG copy" if _from_jpeg(paths[0]) else "not the published files"
            rank_zero_warn(
                f"{type(self).__name__}: the {split} files in {paths[0].parent} are not the published ones (other "
                "checksums), so results do not compare with published figures",
                category=UserWarning,
            )


class CIFAR100(CIFAR10):
    """Photos of a hundred kinds of things, 50,000 + 10,000, with the fine labels."""

    class_names = tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
        can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
        pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
        seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
        tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm
        """.split()  # noqa: SIM905
    )
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

    torchvision_class = datasets.CIFAR100
    folder = "cifar-100-python"
    names: ClassVar[dict[str, list[str]]] = {"train": ["train"], "test": ["test"]}
    key = "fine_labels"


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays among the plain values, and calls nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        rebuild = np.empty(0).__reduce__()[0]  # numpy.core.multiarray._reconstruct, which moved in numpy 2
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,
        }
        foreign = f"it names {module}.{name}, which has no place in this dataset"
        refuse(pickle.UnpicklingError, ((module, name) not in admitted, foreign))
        return admitted[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    refuse(pickle.UnpicklingError, (encoding != "latin1", f"it asks for the encoding {encoding}"))
    return text.encode("latin1")


def _from_jpeg(path: Path) -> bool:
    """Whether a batch names its images as JPEGs; the published ones are PNGs."""
    with path.open("rb") as file:
        names = _ArraysOnly(file, encoding="latin1").load().get("filenames")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith((".jpg", ".jpeg"))


def _read_batch(path: Path, key: str) -> LabelledImages:
    with path.open("rb") as file:
        content = _ArraysOnly(file, encoding="latin1").load()
    absent = not isinstance(content, dict) or "data" not in content or key not in content
    refuse(ValueError, (absent, f"no pickled dictionary with data and {key}"))
    rows, labels = np.asarray(content["data"]), np.asarray(content[key], dtype=np.int64)
    refuse(
        ValueError,
        (rows.dtype != np.uint8 or rows.shape[1:] != (3072,), "data is not a table of 3072 bytes per image"),
        (labels.shape != rows.shape[:1], f"{len(rows)} images but labels of shape {labels.shape}"),
    )
    return LabelledImages(torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels))
