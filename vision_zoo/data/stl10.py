"""STL-10: few labelled photos of 96x96 (Coates et al. 2011, https://cs.stanford.edu/~acoates/stl10)."""

from pathlib import Path

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

    folder = "stl10_binary"

    def files(self) -> list[str]:
        """Images and labels as plain bytes."""
        return ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"]

    def download(self, root: Path) -> None:
        """Fetch and unpack the archive with torchvision."""
        datasets.STL10(root, download=True)

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 3, 96, 96) in [0, 255] and int64 (N,) in [0, 10)."""
        path = self.root / self.folder / f"{split}_X.bin"
        with self._reading(path, (OSError, ValueError)):
            pixels = np.fromfile(path, dtype=np.uint8)
            images = torch.from_numpy(pixels.reshape(-1, 3, 96, 96)).transpose(2, 3)  # the files hold columns
        with self._reading(path.with_name(f"{split}_y.bin"), (OSError,)):
            labels = np.fromfile(path.with_name(f"{split}_y.bin"), dtype=np.uint8)
        return LabelledImages(images, torch.from_numpy(labels).long() - 1)  # labels are counted from 1
