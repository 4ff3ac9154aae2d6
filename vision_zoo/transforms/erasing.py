"""Rectangles of an image, overwritten."""

import math
from typing import Literal

import torch
from torch import Tensor

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.transforms.base import BatchTransform, Span, random_boxes, rectangles, rising, within


class RandomErasing(BatchTransform):
    """Overwrites a random rectangle of an image (Zhong et al. 2017, https://arxiv.org/abs/1708.04896).

    Args:
        p: probability of erasing, in [0, 1].
        scale: smallest and largest area, as a fraction of the image.
        ratio: smallest and largest height / width of the rectangle.
        value: what is written, 0 to 255, or random for noise.
    """

    def __init__(
        self, p: float = 0.5, scale: Span = (0.02, 0.33), ratio: Span = (0.3, 3.3), value: int | Literal["random"] = 0
    ) -> None:
        super().__init__()
        rising(self, 1e-6, 1, scale=scale)
        rising(self, 1e-6, math.inf, ratio=ratio)
        within(self, 1, p=p)
        within(self, 255, value=0 if value == "random" else value)
        self.p, self.scale, self.ratio, self.value = p, scale, ratio, value

    def forward(self, images: Tensor) -> Tensor:
        """Erase a rectangle of each image with probability p."""
        top, left, tall, wide, fits = random_boxes(images, self.scale, self.ratio, spare=1)
        chosen = fits & (torch.rand(len(images), device=images.device) < self.p)
        inside = chosen[:, None, None, None] & rectangles(images, top, left, tall, wide)
        if self.value == "random":
            return torch.where(inside, torch.randint_like(images, 256), images)
        return images.masked_fill(inside, self.value)


class Cutout(BatchTransform):
    """Overwrites a square around a random pixel, cut off at the border (DeVries 2017, https://arxiv.org/abs/1708.04552).

    Args:
        size: side of the square in pixels.
        fill: what is written, 0 to 255.
    """

    def __init__(self, size: int = 8, fill: int = 0) -> None:
        super().__init__()
        refuse(ConfigError, (size < 1, f"Cutout: size must be at least 1, got {size}"))
        within(self, 255, fill=fill)
        self.size, self.fill = size, fill

    def forward(self, images: Tensor) -> Tensor:
        """Erase one square of each image."""
        count, _, height, width = images.shape
        top = torch.randint(height, (count,), device=images.device) - self.size // 2
        left = torch.randint(width, (count,), device=images.device) - self.size // 2
        return images.masked_fill(rectangles(images, top, left, self.size, self.size), self.fill)
