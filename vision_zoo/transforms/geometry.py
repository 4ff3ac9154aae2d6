"""Random transforms of a whole uint8 batch on its device, with one draw per image."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pad

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import TTA, ImageShape

PaddingMode = Literal["constant", "reflect", "edge"]
Span = tuple[float, float]  # the least and the most


class BatchTransform(nn.Module):
    """Base of the transforms that take a batch, uint8 (B, C, H, W), and return one of the same shape and type.

    A subclass draws from torch's global generator on the images' device, once for each image.
    """


class RandomHorizontalFlip(BatchTransform):
    """Mirrors an image left to right.

    Args:
        p: probability of mirroring, in [0, 1].
    """

    dimension = -1

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        _within(self, 1, p=p)
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Mirror each image with probability p."""
        chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(chosen, images.flip(self.dimension), images)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirrors an image top to bottom."""

    dimension = -2


class RandomCrop(BatchTransform):
    """Pads an image on all sides, then cuts a piece of the original size at a random place.

    Args:
        padding: pixels added on each side, so the largest shift.
        padding_mode: what the padding holds: one value (constant), the mirrored image (reflect) or its border (edge).
        fill: value of constant padding, 0 to 255.
    """

    def __init__(self, padding: int = 4, padding_mode: PaddingMode = "constant", fill: int = 0) -> None:
        super().__init__()
        refuse(ConfigError, (padding < 0, f"RandomCrop: padding must be at least 0, got {padding}"))
        _within(self, 255, fill=fill)
        self.padding, self.padding_mode, self.fill = padding, padding_mode, fill

    def forward(self, images: Tensor) -> Tensor:
        """Shift each image by up to `padding` pixels in both directions."""
        count, _, height, width = images.shape
        top, left = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        padded = pad(images, [self.padding] * 4, fill=self.fill, padding_mode=self.padding_mode)
        return _windows(padded, top, left, height, width)


class RandomAffine(BatchTransform):
    """Rotates, shifts, scales and shears an image about its centre, with bilinear interpolation.

    Args:
        degrees: largest rotation to either side, in degrees.
        translate: largest shift to either side, as a fraction of the size, before scaling and rotation.
        scale: smallest and largest factor of size.
        shear: largest horizontal shear to either side, in degrees.
        fill: value of what lies outside of the image, 0 to 255.
    """

    def __init__(
        self, degrees: float = 0.0, translate: float = 0.0, scale: Span = (1.0, 1.0), shear: float = 0.0, fill: int = 0
    ) -> None:
        super().__init__()
        scales = f"RandomAffine: scale must be two rising positive factors, got {list(scale)}"
        others = "RandomAffine: degrees, translate and shear must be at least 0, shear below 90"
        outside = min(degrees, translate, shear) < 0 or shear >= 90
        refuse(ConfigError, (not 0 < scale[0] <= scale[1], scales), (outside, others))
        _within(self, 255, fill=fill)
        self.degrees, self.translate, self.scale, self.shear, self.fill = degrees, translate, scale, shear, fill

    def forward(self, images: Tensor) -> Tensor:
        """Warp each image by a matrix of its own."""
        count, _, height, width = images.shape
        draws = torch.rand(5, count, device=images.device) * 2 - 1  # in [-1, 1)
        angle = draws[0] * math.radians(self.degrees)
        slope = torch.tan(draws[1] * math.radians(self.shear))
        zoom = _log_uniform((draws[2] + 1) / 2, self.scale)
        shift = draws[3:] * 2 * self.translate  # grid coordinates run from -1 to 1
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        # grid_sample asks where each output pixel comes from, in units of half a side: hence the ratios of sides.
        first = torch.stack([cos, (sin + slope * cos) * height / width, shift[0]], dim=1)
        second = torch.stack([-sin * width / height, cos - slope * sin, shift[1]], dim=1)
        matrix = torch.stack([first, second], dim=1)  # (B, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (B, H, W, 2)
        warped = F.grid_sample(images.float() - self.fill, grid, align_corners=False) + self.fill
        return warped.round_().clamp_(0, 255).to(images.dtype)


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
        rising = 0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]
        given = f"got {list(scale)} and {list(ratio)}"
        refuse(ConfigError, (not rising, f"RandomErasing: scale must rise within (0, 1] and ratio above 0, {given}"))
        _within(self, 1, p=p)
        _within(self, 255, value=0 if value == "random" else value)
        self.p, self.scale, self.ratio, self.value = p, scale, ratio, value

    def forward(self, images: Tensor) -> Tensor:
        """Erase a rectangle of each image with probability p."""
        count, _, height, width = images.shape
        area, shape, down, right = torch.rand(4, 10, count, device=images.device)  # of ten attempts for each image
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * area) * height * width
        shape = _log_uniform(shape, self.ratio)
        tall, wide = torch.sqrt(area * shape).round(), torch.sqrt(area / shape).round()
        fits = (tall < height) & (wide < width)
        first = fits.float().argmax(0, keepdim=True)  # the first attempt that fits, for each image
        tall, wide, down, right, fits = (x.gather(0, first)[0] for x in (tall, wide, down, right, fits))
        chosen = fits & (torch.rand(count, device=images.device) < self.p)
        top, left = torch.floor(down * (height - tall + 1)), torch.floor(right * (width - wide + 1))
        inside = chosen[:, None, None, None] & _rectangles(images, top, left, tall, wide)
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
        _within(self, 255, fill=fill)
        self.size, self.fill = size, fill

    def forward(self, images: Tensor) -> Tensor:
        """Erase one square of each image."""
        count, _, height, width = images.shape
        top = torch.randint(height, (count,), device=images.device) - self.size // 2
        left = torch.randint(width, (count,), device=images.device) - self.size // 2
        return images.masked_fill(_rectangles(images, top, left, self.size, self.size), self.fill)


def apply_transforms(transforms: Iterable[nn.Module], images: Tensor) -> Tensor:
    """Apply the transforms to a batch, uint8 (B, C, H, W); one that changes shape or type is a ConfigError.

    A BatchTransform acts on the batch, any other module (torchvision.transforms.v2) image by image, so that it draws
    once for each image.
    """
    for transform in transforms:
        whole = isinstance(transform, BatchTransform)
        parts = [images] if whole else list(images)
        changed = [transform(part) for part in parts]
        for before, after in zip(parts, changed, strict=True):
            if after.shape != before.shape or after.dtype != before.dtype:
                raise ConfigError(
                    f"--data.augmentation: {type(transform).__name__} turns {before.dtype} images of shape "
                    f"{tuple(before.shape)} into {after.dtype} of shape {tuple(after.shape)}; a transform must keep "
                    "both (resize with --data.image_size; the network normalises by itself)"
                    f"{'. It gets one image; one for whole batches is a BatchTransform' * (not whole)}"
                )
        images = changed[0] if whole else torch.stack(changed) if changed else images
    return images


def check_transforms(transforms: Iterable[nn.Module], image_shape: ImageShape) -> None:
    """Apply the transforms to two black images: one that fails is a ConfigError. The random numbers of the run stay."""
    try:
        with torch.random.fork_rng(devices=[]):
            apply_transforms(transforms, torch.zeros(2, *image_shape, dtype=torch.uint8))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(f"--data.augmentation fails on images of shape {image_shape}: {error}") from error


def views(images: Tensor, kind: TTA) -> list[tuple[Tensor, float]]:
    """The views, each uint8 (B, C, H, W), whose predictions test-time augmentation averages, and the weight of each.

    The images themselves come first; the weights sum to 1. "shift" adds the images moved by one pixel to each side (the
    edge repeated), all views alike; "diagonal" the images moved by one pixel down-right and up-left (the border
    reflected), each with half of the weight of the images (airbench94, https://arxiv.org/abs/2404.00498). "flip" adds
    the mirror image of each view, with its weight; "none" adds nothing.
    """
    found, weights = [images], [1.0]
    height, width = images.shape[2:]
    if "shift" in kind:
        for axis, size in ((2, height), (3, width)):
            places = torch.arange(size, device=images.device)
            found += [images.index_select(axis, (places + step).clamp(0, size - 1)) for step in (-1, 1)]
        weights = [1 / len(found)] * len(found)
    if "diagonal" in kind:
        padded = pad(images, [1] * 4, padding_mode="reflect")
        found += [padded[:, :, start : start + height, start : start + width] for start in (0, 2)]
        weights = [1 / 2, 1 / 4, 1 / 4]
    if "flip" in kind:
        found, weights = found + [view.flip(3) for view in found], [weight / 2 for weight in weights] * 2
    return list(zip(found, weights, strict=True))


def _windows(padded: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """A window of each image, copied by whole rows: to index a view of all windows would go pixel by pixel."""
    count, channels, tall, wide = padded.shape
    image = torch.arange(count * channels, device=padded.device).view(count, channels, 1) * tall
    row = image + top[:, None, None] + torch.arange(height, device=padded.device)  # (B, C, height), of all rows
    start = (row * wide + left[:, None, None]).flatten()
    return padded.flatten().unfold(0, width, 1).index_select(0, start).view(count, channels, height, width)


def _rectangles(images: Tensor, top: Tensor, left: Tensor, tall: Tensor | int, wide: Tensor | int) -> Tensor:
    """True inside of one rectangle per image, bool (B, 1, H, W)."""
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # (B, W)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _log_uniform(draws: Tensor, span: Span) -> Tensor:
    """Draws in [0, 1) spread over a span so that a factor and its inverse are as likely."""
    low, high = math.log(span[0]), math.log(span[1])
    return torch.exp(low + (high - low) * draws)


def _within(transform: nn.Module, most: int, **options: float) -> None:
    for name, value in options.items():
        message = f"{type(transform).__name__}: {name} must be between 0 and {most}, got {value}"
        refuse(ConfigError, (not 0 <= value <= most, message))
