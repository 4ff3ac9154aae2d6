"""CIFAR-10 and CIFAR-100: 32x32 colour photos (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torchvision import datasets
from torchvision.datasets.utils import check_md5

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.unpickling import Unpickler, plain_array
from vision_zoo.errors import refuse
from vision_zoo.types import LabelledImages, Split


class CIFAR10(ImageDataModule):
    """Photos of ten kinds of animals and vehicles, 50,000 + 10,000."""

    class_names: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    image_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    torchvision_class = datasets.CIFAR10
    folder = "cifar-10-batches-py"
    names: Mapping[str, Sequence[str]] = {
        "train": [f"data_batch_{n}" for n in range(1, 6)],
        "test": ["test_batch"],
    }
    key: ClassVar[str] = "labels"  # of the labels in the pickled batches

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 3, 32, 32) in [0, 255] and int64 (N,) in [0, K)."""
        paths = [self.root / self.folder / name for name in self.names[split]]
        parts, filenames = [], None
        for path in paths:
            with self._reading(path):
                part, filenames = _read_batch(path, self.key)
            parts.append(part)
        checksums = dict(getattr(self.torchvision_class, f"{split}_list"))
        if not all(check_md5(str(path), checksums[path.name]) for path in paths):
            self.note = "JPEG copy" if _from_jpeg(filenames) else "not the published files"
            rank_zero_warn(
                f"{type(self).__name__}: the {split} files in {paths[0].parent} are not the published ones (other "
                "checksums), so results do not compare with published figures",
                category=UserWarning,
            )
        return LabelledImages(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


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
    names: Mapping[str, Sequence[str]] = {"train": ["train"], "test": ["test"]}
    key = "fine_labels"


def _from_jpeg(filenames: object) -> bool:
    """Whether a batch names its images as JPEGs; the published ones are PNGs."""
    return isinstance(filenames, list) and str(*filenames[:1]).endswith((".jpg", ".jpeg"))


def _read_batch(path: Path, key: str) -> tuple[LabelledImages, object]:
    """The images and labels of a batch, and its names of the images."""
    with path.open("rb") as file:
        content = Unpickler(file, encoding="latin1").load()
    absent = not isinstance(content, dict) or "data" not in content or key not in content
    refuse(ValueError, (absent, f"no pickled dictionary with data and {key}"))
    rows, labels = np.asarray(plain_array(content["data"])), np.asarray(content[key], dtype=np.int64)
    refuse(
        ValueError,
        (rows.dtype != np.uint8 or rows.shape[1:] != (3072,), "data is not a table of 3072 bytes per image"),
        (labels.shape != rows.shape[:1], f"{len(rows)} images but labels of shape {labels.shape}"),
    )
    images = torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy())
    return LabelledImages(images, torch.from_numpy(labels)), content.get("filenames")
