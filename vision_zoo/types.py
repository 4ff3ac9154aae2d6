"""The few types that the whole package shares."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

Config = dict[str, Any]
"""Nested options as plain data, as a recipe holds them."""

ImageShape = tuple[int, int, int]
"""(channels, height, width) of one image. A plain tuple: named ones cannot be loaded with ``weights_only=True``."""

ValueRange = tuple[float, float] | None
"""The values that become 0 and 255 in images that are not 8 bits; None where all images are."""

Split = Literal["train", "val", "test"]

TTA = Literal["none", "flip", "shift", "flip+shift", "diagonal", "flip+diagonal"]
"""Views of each test image whose predictions are averaged: test-time augmentation, see ``transforms.views``."""

Sampler = Literal["balanced"] | None
"""How often each training image is drawn: once per epoch, or each class equally often."""

Compile = Literal["default", "reduce-overhead", "max-autotune", "eager"]
"""How torch compiles a network: modes of ``torch.compile``, or eager, its backend that only traces."""

Batch = tuple[Tensor, Tensor]
"""Images, uint8 (B, C, H, W) in [0, 255], and labels, int64 (B,) in [0, K); or, of mixed images, float32 (B, K)."""


Interpolation = Literal["bilinear", "bicubic"]
"""How pixels are computed where images are resized; both are antialiased where they shrink."""

Resize = Literal["crop", "squash", "pad"]
Resizing = tuple[Resize, Interpolation]


class Preprocessing(NamedTuple):
    """How the images were prepared that pretrained weights were trained with."""

    mean: tuple[float, ...]  # of each channel, in [0, 1]
    std: tuple[float, ...]  # likewise
    image_size: int  # side of the square
    interpolation: Interpolation = "bilinear"

    def for_channels(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of each channel, where images have not three: of gray, the means over red, green and blue."""
        if channels == 1:
            return (sum(self.mean) / len(self.mean),), (sum(self.std) / len(self.std),)
        turns = [channel % len(self.mean) for channel in range(channels)]
        return tuple(self.mean[turn] for turn in turns), tuple(self.std[turn] for turn in turns)


class LabelledImages(NamedTuple):
    """All images of one split."""

    images: Tensor  # uint8 (N, C, H, W) in [0, 255]
    labels: Tensor  # int64 (N,) in [0, K)
