"""Flips, crops and warps, and the views of test-time augmentation."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import pad

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.transforms import base
from vision_zoo.transforms.base import BatchTransform, Span, as_bytes, chosen, in_groups, rising, within
from vision_zoo.types import TTA

PaddingMode = Literal["constant", "reflect", "edge"]


class RandomHorizontalFlip(BatchTransform):
    """Mirrors an image left to right.

    Args:
        p: probability of mirroring, in [0, 1].
    """

    dimension = -1

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        within(self, 1, p=p)
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Mirror each image with probability p."""
        which = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return chosen(which, images.flip(self.dimension), images)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirrors an image top to bottom."""

    dimension = -2


class AlternatingFlip(BatchTransform):
    """Mirrors an image left to right in every other epoch (Jordan 2024, https://arxiv.org/abs/2404.00498).

    Half of the images begin with the first epoch, the others with the second, so that two epochs in a row show both
    sides of every image. Which half an image is of follows from its pixels: this must be the first transform. There are
    no options, and no random numbers are drawn.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Mirror the images whose turn it is in this epoch."""
        pixels = images.flatten(1)
        words = F.pad(pixels, (0, -pixels.shape[1] % 8)).contiguous().view(torch.int64)  # eight pixels each
        random = torch.Generator().manual_seed(0)
        weights = torch.randint(-(2**63), 2**63 - 1, (words.shape[1],), generator=random).to(images.device)
        which = (words * weights).sum(1) < 0  # the highest bit of the sum, which overflows
        return chosen((which ^ bool(self.epoch % 2))[:, None, None, None], images.flip(3), images)


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
        within(self, 255, fill=fill)
        self.padding, self.padding_mode, self.fill = padding, padding_mode, fill

    def forward(self, images: Tensor) -> Tensor:
        """Shift each image by up to `padding` pixels in both directions."""
        count, _, height, width = images.shape
        top, left = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        padded = pad(images, [self.padding] * 4, fill=self.fill, padding_mode=self.padding_mode)
        return _windows(padded, top, left, height, width)


class RandomResizedCrop(BatchTransform):
    """Cuts a piece of random size and proportions and resizes it to the size of the image, with bilinear interpolation.

    Pieces are drawn and resized as by torchvision's. They are only ever enlarged, where antialiasing changes nothing.

    Args:
        scale: smallest and largest area of the piece, as a fraction of the image.
        ratio: smallest and largest width / height of the piece.
    """

    def __init__(self, scale: Span = (0.08, 1.0), ratio: Span = (3 / 4, 4 / 3)) -> None:
        super().__init__()
        rising(self, 1e-6, 1, scale=scale)
        rising(self, 1e-6, math.inf, ratio=ratio)
        self.scale, self.ratio = scale, ratio

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge a piece of each image."""
        height, width = images.shape[2:]
        low, high = self.ratio
        top, left, tall, wide, fits = base.random_boxes(images, self.scale, (1 / high, 1 / low))
        # Where no attempt fits, the largest piece of allowed proportions, in the middle.
        most_tall, most_wide = min(height, round(width / low)), min(width, round(height * high))
        middle = ((height - most_tall) // 2, (width - most_wide) // 2, most_tall, most_wide)
        found = zip((top, left, tall, wide), middle, strict=True)
        return enlarged(images, *(side.where(fits, side.new_tensor(other)) for side, other in found))


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
        others = "RandomAffine: degrees, translate and shear must be at least 0, shear below 90"
        refuse(ConfigError, (min(degrees, translate, shear) < 0 or shear >= 90, others))
        rising(self, 1e-6, math.inf, scale=scale)
        within(self, 255, fill=fill)
        self.degrees, self.translate, self.scale, self.shear, self.fill = degrees, translate, scale, shear, fill

    def forward(self, images: Tensor) -> Tensor:
        """Warp each image by a matrix of its own."""
        count, _, height, width = images.shape
        draws = torch.rand(5, count, device=images.device) * 2 - 1  # in [-1, 1)
        angle = draws[0] * math.radians(self.degrees)
        slope = torch.tan(draws[1] * math.radians(self.shear))
        zoom = base.log_uniform((draws[2] + 1) / 2, self.scale)
        shift = draws[3:] * 2 * self.translate  # grid coordinates run from -1 to 1
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        # grid_sample asks where each output pixel comes from, in units of half a side: hence the ratios of sides.
        first = torch.stack([cos, (sin + slope * cos) * height / width, shift[0]], dim=1)
        second = torch.stack([-sin * width / height, cos - slope * sin, shift[1]], dim=1)
        matrix = torch.stack([first, second], dim=1)  # (B, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (B, H, W, 2)
        warped = F.grid_sample(images.float() - self.fill, grid, align_corners=False) + self.fill
        return as_bytes(warped.round_().clamp_(0, 255))


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


def mean_of_views(classify: Callable[[Tensor], Tensor], images: Tensor, kind: TTA) -> Tensor:
    """The logarithm of the weighted mean of the views' probabilities, float (B, K), which serves as logits."""
    seen = views(images, kind)
    return torch.stack([classify(view).float().log_softmax(1) + math.log(w) for view, w in seen]).logsumexp(0)


def _windows(padded: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """A window of each image, copied by whole rows: to index a view of all windows would go pixel by pixel."""
    count, channels, tall, wide = padded.shape
    image = torch.arange(count * channels, device=padded.device).view(count, channels, 1) * tall
    row = image + top[:, None, None] + torch.arange(height, device=padded.device)  # (B, C, height), of all rows
    start = (row * wide + left[:, None, None]).flatten()
    return padded.flatten().unfold(0, width, 1).index_select(0, start).view(count, channels, height, width)


def enlarged(images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """A box of each image, of whole pixels, (B,), enlarged to the size of the image by bilinear interpolation."""
    height, width = images.shape[2:]
    x, y = _stretched(width, left, wide)[:, None], _stretched(height, top, tall)[:, :, None]

    def enlarge(part: Tensor, places: Tensor) -> Tensor:
        here = places.to(images.device)
        sides = x[here].expand(-1, height, -1), y[here].expand(-1, -1, width)
        grid = torch.stack(sides, 1).permute(0, 2, 3, 1)
        return as_bytes(F.grid_sample(part.float(), grid, align_corners=False).round_())

    return in_groups(images, None, [enlarge])


def _stretched(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Where the pixels of an axis come from, inside of the box, in the units of ``grid_sample``; (B, size)."""
    places = (torch.arange(size, device=start.device) + 0.5) * (length / size)[:, None] - 0.5
    places = places.clamp_(min=0).minimum(length[:, None] - 1) + start[:, None]
    return places * (2 / size) + (1 / size - 1)
