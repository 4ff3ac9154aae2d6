"""STL-10: few labelled photos of 96x96 (Coates et al. 2011, https://cs.stanford.edu/~acoates/stl10)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torchvision import datasets

from vision_zoo.data.base import ImageDataModule
from vision_zoo.types import LabelledImages, Split


class STL10(ImageDataModule):
    """Photos of ten kinds of animals and vehicles, 5,000 + 8,000; the unlabelled ones are not used."""

    class_names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    image_shape = (3, 96, 96)
    mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)

    torchvision_class = datasets.STL10
    folder = "stl10_binary"
    names: Mapping[str, Sequence[str]] = {"train": ["train_X.bin", "train_y.bin"], "test": ["test_X.bin", "test_y.bin"]}

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 3, 96, 96) in [0, 255] and int64 (N,) in [0, 10)."""
        images_path, labels_path = (self.root / self.folder / name for name in self.names[split])
        with self._reading(images_path):
            pixels = np.fromfile(images_path, dtype=np.uint8)
            images = torch.from_numpy(pixels.reshape(-1, 3, 96, 96)).transpose(2, 3)  # the files hold columns
        with self._reading(labels_path):
            labels = np.fromfile(labels_path, dtype=np.uint8)
        return LabelledImages(images, torch.from_numpy(labels).long() - 1)  # labels are counted from 1
