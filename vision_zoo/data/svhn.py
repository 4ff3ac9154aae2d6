"""SVHN: house numbers photographed from the street (Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torchvision import datasets

from vision_zoo.data.base import ImageDataModule
from vision_zoo.types import LabelledImages, Split


class SVHN(ImageDataModule):
    """Digits of house numbers, 73,257 + 26,032 colour images of 32x32."""

    class_names = tuple("0123456789")
    image_shape = (3, 32, 32)
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)

    torchvision_class = datasets.SVHN
    torchvision_options = ({"split": "train"}, {"split": "test"})
    names: Mapping[str, Sequence[str]] = {"train": ["train_32x32.mat"], "test": ["test_32x32.mat"]}

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 3, 32, 32) in [0, 255] and int64 (N,) in [0, 10)."""
        from scipy.io import loadmat, matlab  # noqa: PLC0415  half a second, for this dataset alone

        path = self.root / self.names[split][0]
        with self._reading(path, matlab.MatReadError):
            content = loadmat(path, variable_names=["X", "y"])
            images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
            images = images.transpose(3, 2, 0, 1).copy()
        labels[labels == 10] = 0  # the files call the digit 0 "10"
        return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))
