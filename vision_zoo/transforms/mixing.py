"""Mixtures of two images of a batch, and of their labels."""

import torch
from torch import Tensor

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.transforms.base import LabelledTransform, as_bytes, chosen, each, rectangles, within


class _Mixing(LabelledTransform):
    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        refuse(ConfigError, (alpha <= 0, f"{type(self).__name__}: alpha must be above 0, got {alpha}"))
        within(self, 1, p=p)
        self.alpha, self.p = alpha, p

    def shares(self, count: int) -> Tensor:
        """What each image keeps of itself, float32 (B,) in [0, 1] on the CPU, which has this draw on every machine."""
        beta = torch.distributions.Beta(self.alpha, self.alpha).sample((count,))
        return torch.where(torch.rand(count) < self.p, beta, 1.0)


class MixUp(_Mixing):
    """Blends an image with another one of its batch, and their labels likewise.

    The share that an image keeps is drawn from Beta(alpha, alpha) (Zhang et al. 2017, https://arxiv.org/abs/1710.09412).

    Args:
        alpha: the larger, the nearer to halves; near 0 almost all of one of the two. Above 0.
        p: probability of blending, in [0, 1].
    """

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Blend each image with a partner, a random permutation of the batch, and round."""
        share = each(self.shares(len(images)), images)
        partners = torch.randperm(len(images)).to(images.device)
        mixed = images.index_select(0, partners).float().lerp_(images.float(), share)
        return as_bytes(mixed.round_()), labels[partners].lerp(labels, share[:, :, 0, 0])


class CutMix(_Mixing):
    """Pastes a rectangle of another image of the batch, and mixes the labels by their shares of pixels.

    The share that stays is drawn from Beta(alpha, alpha). The rectangle has the proportions of the image and a random
    centre, and is cut off at the border (Yun et al. 2019, https://arxiv.org/abs/1905.04899).

    Args:
        alpha: the larger, the nearer to halves; near 0 almost all of one of the two. Above 0.
        p: probability of pasting, in [0, 1].
    """

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Paste into each image from a partner, a random permutation of the batch."""
        count, _, height, width = images.shape
        half = 0.5 * torch.sqrt(1 - self.shares(count)).to(images.device)
        partners = torch.randperm(count).to(images.device)
        down, right = (half * height).floor(), (half * width).floor()
        row, column = (torch.randint(size, (count,)).to(images.device) for size in (height, width))
        inside = rectangles(images, row - down, column - right, 2 * down, 2 * right)  # (B, 1, H, W)
        share = 1 - inside.float().mean((1, 2, 3))[:, None]  # of the pixels that stay
        return chosen(inside, images.index_select(0, partners), images), labels[partners].lerp(labels, share)
