"""CIFAR-10 and CIFAR-100: 32x32 colour photos (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torchvision import datasets

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.unpickling import Unpickler, plain_array
from vision_zoo.errors import refuse
from vision_zoo.types import LabelledImages, Split

_OTHERS = "not the published images"


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
    names: Mapping[str, Sequence[str]] = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
    keys: ClassVar[Sequence[str]] = ("labels",)  # of the labels in a batch, as its records hold them; the last counts
    # SHA-1 of the records of each batch, labels and then pixels: of the files of the published binary version.
    published: ClassVar[Mapping[str, str]] = {
        "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
    }
    # Copies that are published but for something; at most 0.2 points of accuracy can hang on this one.
    copies: ClassVar[Mapping[str, str]] = {"cbea4389ae3e377c0090406f1f786efe5ded9c7e": "20 test images JPEG-compressed"}

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 3, 32, 32) in [0, 255] and int64 (N,) in [0, K)."""
        paths = [self.root / self.folder / name for name in self.names[split]]
        parts, differing = [], []
        for path in paths:
            with self._reading(path):
                part, sha1 = _read_batch(path, self.keys)
            parts.append(part)
            if sha1 != self.published[path.name]:
                differing.append(self.copies.get(sha1, _OTHERS))
        self.note = _OTHERS if _OTHERS in differing else self.note or "".join(differing)
        if _OTHERS in differing:
            rank_zero_warn(
                f"{type(self).__name__}: the {split} images in {paths[0].parent} are not the published ones (other "
                "checksums of pixels and labels), so results do not compare with published figures",
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
    keys = ("coarse_labels", "fine_labels")
    published: ClassVar[Mapping[str, str]] = {
        "train": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
        "test": "8fb6623e830365ff53cf14adec797474f5478006",
    }


def _read_batch(path: Path, keys: Sequence[str]) -> tuple[LabelledImages, str]:
    """The images of a batch with the labels of the last key, and the SHA-1 of its records."""
    with path.open("rb") as file:
        content = Unpickler(file, encoding="latin1").load()
    absent = not isinstance(content, dict) or "data" not in content or keys[-1] not in content
    refuse(ValueError, (absent, f"no pickled dictionary with data and {keys[-1]}"))
    rows, labels = np.asarray(plain_array(content["data"])), np.asarray(content[keys[-1]], dtype=np.int64)
    refuse(
        ValueError,
        (rows.dtype != np.uint8 or rows.shape[1:] != (3072,), "data is not a table of 3072 bytes per image"),
        (labels.shape != rows.shape[:1], f"{len(rows)} images but labels of shape {labels.shape}"),
    )
    columns = [np.reshape(content.get(key, labels), (-1, 1)).astype(np.uint8) for key in keys]
    sha1 = hashlib.sha1(np.concatenate([*columns, rows], axis=1).data, usedforsecurity=False).hexdigest()
    return LabelledImages(torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels)), sha1
