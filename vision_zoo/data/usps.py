"""USPS: digits scanned from envelopes (Hull 1994, https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets)."""

from collections.abc import Mapping, Sequence

import torch
from torchvision import datasets

from vision_zoo.data.base import ImageDataModule
from vision_zoo.types import LabelledImages, Split


class USPS(ImageDataModule):
    """Handwritten digits of postal codes, 7,291 + 2,007 gray images of 16x16."""

    class_names = tuple("0123456789")
    image_shape = (1, 16, 16)
    mean, std = (0.2469,), (0.2989,)

    torchvision_class = datasets.USPS
    torchvision_options = ({"train": True}, {"train": False})
    names: Mapping[str, Sequence[str]] = {"train": ["usps.bz2"], "test": ["usps.t.bz2"]}

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, 1, 16, 16) in [0, 255] and int64 (N,) in [0, 10)."""
        with self._reading(self.root / self.names[split][0]):
            found = datasets.USPS(self.root, train=split == "train")
        return LabelledImages(torch.from_numpy(found.data)[:, None], torch.tensor(found.targets))
