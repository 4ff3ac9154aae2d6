"""Brightness, contrast, colour and sharpness; each image has a factor of its own.

The operations take images, uint8 (B, C, H, W), and factors, (B,) on the CPU, and compute what torchvision's v2
functions of these names do for one image and one factor. What needs colours leaves images of other than three channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.transforms.base import BatchTransform, Span, as_bytes, each, in_groups, rising, within

Change = float | Span


class ColorJitter(BatchTransform):
    """Changes brightness, contrast, saturation and hue by random factors, in a random order, as torchvision's does.

    Args:
        brightness: the largest change to either side, so that the factor is in [1 - b, 1 + b], or the two factors.
        contrast: likewise.
        saturation: likewise; images of three channels only.
        hue: the largest turn to either side, or the two turns, in [-0.5, 0.5] of the circle of colours; likewise.
    """

    def __init__(self, brightness: Change = 0, contrast: Change = 0, saturation: Change = 0, hue: Change = 0) -> None:
        super().__init__()
        self.brightness, self.contrast = _around_one(brightness), _around_one(contrast)
        self.saturation, self.hue = _around_one(saturation), (-hue, hue) if isinstance(hue, int | float) else hue
        rising(self, 0, torch.inf, brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        rising(self, -0.5, 0.5, hue=self.hue)

    def forward(self, images: Tensor) -> Tensor:
        """Change each image by factors of its own."""
        spans = {brightness: self.brightness, contrast: self.contrast, saturation: self.saturation, hue: self.hue}
        used = {k: _uniform(len(images), x) for k, x in spans.items() if tuple(x) != ((0, 0) if k is hue else (1, 1))}
        operations = [lambda part, places, by=kind, f=factors: by(part, f[places]) for kind, factors in used.items()]
        for groups in torch.rand(len(used), len(images)).argsort(0):  # the order of the operations, for each image
            images = in_groups(images, groups, operations)
        return images


class RandomGrayscale(BatchTransform):
    """Takes the colours from an image of three channels; others stay.

    Args:
        p: probability, in [0, 1].
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        within(self, 1, p=p)
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Make each image gray with probability p."""
        if images.shape[1] != 3:
            return images
        places = (torch.rand(len(images)) < self.p).nonzero()[:, 0].to(images.device)
        return images.index_copy(0, places, TF.rgb_to_grayscale(images.index_select(0, places), 3))


class GaussianBlur(BatchTransform):
    """Blurs an image, which is mirrored at its border.

    Args:
        kernel_size: pixels in each direction that a pixel is mixed of, an odd number.
        sigma: smallest and largest standard deviation of the weights, in pixels.
    """

    def __init__(self, kernel_size: int = 3, sigma: Span = (0.1, 2.0)) -> None:
        super().__init__()
        even = kernel_size < 1 or kernel_size % 2 == 0
        refuse(ConfigError, (even, f"GaussianBlur: kernel_size must be an odd number, got {kernel_size}"))
        rising(self, 1e-3, torch.inf, sigma=sigma)
        self.kernel_size, self.sigma = kernel_size, sigma

    def forward(self, images: Tensor) -> Tensor:
        """Blur each image with a sigma of its own."""
        half, sigmas = self.kernel_size // 2, _uniform(len(images), self.sigma)[:, None]
        weights = torch.softmax(-0.5 * (torch.arange(-half, half + 1) / sigmas) ** 2, 1)  # (B, kernel_size)

        def blur(part: Tensor, places: Tensor) -> Tensor:
            blurred = F.pad(part.float(), [half] * 4, mode="reflect")
            for axis in (2, 3):
                padded, size = blurred, part.shape[axis]
                blurred = torch.zeros_like(padded.narrow(axis, half, size))
                for tap, weight in enumerate(weights[places].T):
                    blurred.addcmul_(padded.narrow(axis, tap, size), each(weight, images))
            return as_bytes(blurred.round_())

        return in_groups(images, None, [blur])


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the pixels."""
    return as_bytes(images.mul(each(factors, images)).clamp_(0, 255))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move the pixels from the mean brightness of their image, or towards it."""
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Move the pixels from the gray of the same brightness, or towards it."""
    return _blend(images, _gray(images), factors) if images.shape[1] == 3 else images


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the colours by a share of their circle."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.float().unbind(1)
    high, low = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    # 1 where a colour is the strongest, the first of equal ones, else 0; comparisons would be slower.
    is_red = (red - high + 1).clamp_(min=0)
    is_green = (green - high + 1).clamp_(min=0) * (1 - is_red)
    place = is_red * (green - blue) + is_green * (blue - red + 2 * (high - low))
    place += (1 - is_red - is_green) * (red - green + 4 * (high - low))
    place = place.div_((high - low).clamp_(min=1)) + each(6 * turns, images)[:, 0]  # in sixths of the circle from red
    k = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None] + place[:, None]
    k -= 6 * (k / 6).floor_()
    turned = high[:, None] - (high - low)[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)
    return as_bytes(turned.mul_(255.999 / 255))  # rounded as torchvision does


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Move the pixels from those of a blurred image, or towards them; the border stays."""
    if min(images.shape[2:]) <= 2:
        return images
    x = images.float()
    rows, inner = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:], x[:, :, 1:-1, 1:-1]
    blurred = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]  # each pixel counts once, that in the middle five times
    blurred.add_(inner, alpha=4).div_(13).round_()
    inner.addcmul_(blurred.sub_(inner), each(1 - factors, images))
    return as_bytes(x.clamp_(0, 255))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each value."""
    return images & each((255 << (8 - bits.long())) & 255, images).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the values from a threshold on, which is in [0, 255]."""
    below = (images.to(torch.int16) - each(thresholds, images).ceil().to(torch.int16)) >> 15  # all bits set, or none
    return images ^ ~below.to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    return (TF.rgb_to_grayscale(images) if images.shape[1] == 3 else images).float()


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return as_bytes(images.mul(each(factors, images)).addcmul_(others, each(1 - factors, images)).clamp_(0, 255))


def _around_one(change: Change) -> Span:
    return (max(1 - change, 0.0), 1 + change) if isinstance(change, int | float) else change


def _uniform(count: int, span: Span) -> Tensor:
    return span[0] + (span[1] - span[0]) * torch.rand(count).double()
