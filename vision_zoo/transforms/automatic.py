"""Automatic augmentation: random operations of random strength, with the ranges of torchvision's v2."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.transforms import colour
from vision_zoo.transforms.base import BatchTransform, as_bytes, in_groups

# The first need a strength with a sign.
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = (*SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize", "Identity")
GEOMETRIC = 5  # so many of them move pixels


class RandAugment(BatchTransform):
    """Some operations in a row, all of one strength (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719).

    Each is drawn from shears, shifts, rotation, brightness, colour, contrast, sharpness, posterize, solarize,
    autocontrast, equalize and identity. Pixels from outside of the image are black. Equal to torchvision's defaults.

    Args:
        num_ops: operations in a row, for each image.
        magnitude: the strength, from 0 to num_magnitude_bins - 1.
        num_magnitude_bins: how many strengths there are, at least 2.
    """

    largest_shear, largest_rotation, largest_change, fewest_bits = 0.3, 30.0, 0.9, 4
    largest_shift: float | None = None  # in pixels

    def __init__(self, num_ops: int = 2, magnitude: int = 9, num_magnitude_bins: int = 31) -> None:
        super().__init__()
        wrong = num_ops < 0 or num_magnitude_bins < 2 or not 0 <= magnitude < num_magnitude_bins
        asked = "num_ops must be at least 0, num_magnitude_bins at least 2, and magnitude from 0 to one less than them"
        given = f"got {num_ops}, {num_magnitude_bins} and {magnitude}"
        refuse(ConfigError, (wrong, f"{type(self).__name__}: {asked}, {given}"))
        self.num_ops, self.magnitude, self.num_magnitude_bins = num_ops, magnitude, num_magnitude_bins
        self.bins = (magnitude, magnitude + 1)  # from which one is drawn

    def forward(self, images: Tensor) -> Tensor:
        """Apply the operations drawn for each image."""
        strengths, count = self.strengths(*images.shape[2:]), (len(images),)
        for _ in range(self.num_ops):
            operations, bins = torch.randint(len(OPERATIONS), count), torch.randint(*self.bins, count)
            signs = torch.where((torch.rand(count) < 0.5) & (operations < len(SIGNED)), -1.0, 1.0)
            images = operate(images, operations, signs * strengths[operations, bins])
        return images

    def strengths(self, height: int, width: int) -> Tensor:
        """Of each operation, float64 (14, bins): slope, pixels, degrees, change of a factor, bits or threshold."""
        count, shift = self.num_magnitude_bins, self.largest_shift
        shifts = (150 / 331 * width, 150 / 331 * height) if shift is None else (shift, shift)
        largest = (*[self.largest_shear] * 2, *shifts, self.largest_rotation, *[self.largest_change] * 4)
        bits = (8 - torch.arange(count) / ((count - 1) / (8 - self.fewest_bits))).round()
        thresholds = 255 * torch.linspace(1.0, 0.0, count)
        signed = (torch.linspace(0.0, most, count) for most in largest)
        return torch.stack([*signed, bits, thresholds, *torch.zeros(3, count)]).double()


class TrivialAugmentWide(RandAugment):
    """One operation of a random strength (Müller and Hutter 2021, https://arxiv.org/abs/2103.10158).

    The operations are those of RandAugment, in wider ranges. Equal to torchvision's defaults.

    Args:
        num_magnitude_bins: how many strengths there are, at least 2.
    """

    largest_shear, largest_rotation, largest_change, fewest_bits = 0.99, 135.0, 0.99, 2
    largest_shift = 32.0

    def __init__(self, num_magnitude_bins: int = 31) -> None:
        super().__init__(1, 0, num_magnitude_bins)
        self.bins = (0, num_magnitude_bins)


def operate(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Apply to each image one of OPERATIONS, int64 (B,), with one of `RandAugment.strengths`, (B,), both on the CPU."""
    matrices = _matrices(operations, strengths, *images.shape[2:])
    changes = (colour.brightness, colour.saturation, colour.contrast, colour.sharpness)
    groups = [
        lambda part, places: _warp(part, matrices[places]),
        *(partial(lambda change, part, places: change(part, 1 + strengths[places]), change) for change in changes),
        lambda part, places: colour.posterize(part, strengths[places]),
        lambda part, places: colour.solarize(part, strengths[places]),
        lambda part, _: TF.autocontrast(part),
        lambda part, _: TF.equalize(part),
        None,
    ]
    return in_groups(images, (operations - GEOMETRIC + 1).clamp(min=0), groups)


def _matrices(operations: Tensor, strengths: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel comes from, in pixels from the centre, float32 (B, 2, 3); shears keep the top left corner."""
    # Each image has one of these at most.
    shear_x, shear_y, shift_x, shift_y, angle = F.one_hot(operations, len(OPERATIONS)).T[:GEOMETRIC] * strengths
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    first = (cos, shear_x - sin, shear_x * height / 2 - shift_x.trunc())
    second = (shear_y + sin, cos, shear_y * width / 2 - shift_y.trunc())
    return torch.stack([*first, *second], dim=1).view(-1, 2, 3).float()


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Warp by matrices of `_matrices`, to the nearest pixel, black outside."""
    height, width = images.shape[2:]
    y, x = (torch.linspace((1 - n) / 2, (n - 1) / 2, n, device=images.device) for n in (height, width))
    scaled = matrices.to(images.device) / torch.tensor([[width / 2], [height / 2]], device=images.device)
    by_x, by_y, shift = scaled[..., None, None].unbind(2)  # (B, 2, 1, 1), in the units of grid_sample
    grid = (by_x * x + by_y * y[:, None]).add_(shift).permute(0, 2, 3, 1)  # in this order, so that ties round as theirs
    return as_bytes(F.grid_sample(images.float(), grid, mode="nearest", align_corners=False))
