"""USPS: digits scanned from envelopes (Hull 1994, https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets)."""

import bz2
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torchvision import datasets

from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import refuse
from vision_zoo.types import LabelledImages, Split

MOST_BYTES = 2**28  # unpacked; the larger published file has 23 million


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
        path = self.root / self.names[split][0]
        with self._reading(path, (OSError, EOFError, ValueError)):
            with bz2.open(path) as file:
                content = file.read(MOST_BYTES + 1)
            refuse(ValueError, (len(content) > MOST_BYTES, f"more than {MOST_BYTES:,} bytes"))
            lines = content.splitlines()
            rows = [re.sub(rb"\b\d+:", b"", line).split() for line in lines]  # "label 1:value ... 256:value"
            table = np.array(rows, dtype=np.float32).reshape(len(rows), 257)
        pixels = ((table[:, 1:] + 1) / 2 * 255).astype(np.uint8)  # values run from -1 to 1
        labels = table[:, 0].astype(np.int64) - 1  # labels are counted from 1
        return LabelledImages(torch.from_numpy(pixels).reshape(-1, 1, 16, 16), torch.from_numpy(labels))
