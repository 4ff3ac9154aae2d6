"""What all transforms share: their two kinds, how they are applied, and what several of them draw."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import Batch, ImageShape

Span = tuple[float, float]  # the least and the most
_CACHED = 2**18  # pixels that are computed at once: as many stay near the processor from one operation to the next


class BatchTransform(nn.Module):
    """Base of the transforms that take a batch, uint8 (B, C, H, W), and return one of the same shape and type.

    A subclass draws from torch's global generators, once for each image.
    """

    epoch = 0  # of the training, counted from 0; set before each batch


class LabelledTransform(nn.Module):
    """Base of the transforms of images and labels: ``forward(images, labels)`` returns both anew.

    Images are uint8 (B, C, H, W). Labels are probabilities, float32 (B, K), each row of which sums to 1. A subclass
    draws from torch's global generators, once for each image.
    """


def apply_transforms(
    transforms: Iterable[nn.Module], images: Tensor, labels: Tensor, num_classes: int, epoch: int = 0
) -> Batch:
    """Apply the transforms to a batch; one that changes shape or type is a ConfigError.

    A BatchTransform acts on the batch, a LabelledTransform on its labels too, any other module
    (torchvision.transforms.v2) image by image, so that it draws once for each image.

    Images are uint8 (B, C, H, W), labels int64 (B,) in [0, K) or probabilities, float (B, K): the latter are returned
    if a transform mixes them. Epochs of the training count from 0.
    """
    for transform in transforms:
        whole = isinstance(transform, BatchTransform | LabelledTransform)
        parts = [images] if whole else list(images)
        if isinstance(transform, LabelledTransform):
            parts += [labels.float() if labels.ndim == 2 else F.one_hot(labels, num_classes).float()]
            changed = list(transform(*parts))
        else:
            if isinstance(transform, BatchTransform):
                transform.epoch = epoch
            changed = [transform(part) for part in parts]
        for before, after in zip(parts, changed, strict=True):
            if after.shape != before.shape or after.dtype != before.dtype:
                were = f"{before.dtype} {'labels' if before.ndim == 2 else 'images'} of shape {tuple(before.shape)}"
                turns = f"{type(transform).__name__} turns {were} into {after.dtype} of shape {tuple(after.shape)}"
                keep = "a transform must keep both (resize with --data.image_size; the network normalises by itself)"
                single = ". It gets one image; one for whole batches is a BatchTransform" * (not whole)
                raise ConfigError(f"--data.augmentation: {turns}; {keep}{single}")
        images = changed[0] if whole else torch.stack(changed) if changed else images
        labels = changed[1] if isinstance(transform, LabelledTransform) else labels
    return images, labels


def check_transforms(transforms: Iterable[nn.Module], image_shape: ImageShape, num_classes: int) -> None:
    """Apply the transforms to two black images: one that fails is a ConfigError. The random numbers of the run stay."""
    try:
        with torch.random.fork_rng(devices=[]):
            images, labels = torch.zeros(2, *image_shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
            apply_transforms(transforms, images, labels, num_classes)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(f"--data.augmentation fails on images of shape {image_shape}: {error}") from error


def in_groups(
    images: Tensor, groups: Tensor | None, operations: Sequence[Callable[[Tensor, Tensor], Tensor] | None]
) -> Tensor:
    """Apply to each image the operation of its group, int64 (B,) on the CPU; all are of the first, if there are none.

    An operation gets some images, uint8 (N, C, H, W), and their places in the batch, int64 (N,) on the CPU. None leaves
    them as they are.
    """
    if not len(images):
        return images
    groups = torch.zeros(len(images), dtype=torch.long) if groups is None else groups
    order = groups.argsort(stable=True)
    members = order.split_with_sizes(groups.bincount(minlength=len(operations)).tolist())
    most, changed = max(1, _CACHED // images[0].numel()), []
    for operation, places in zip(operations, members, strict=True):
        for start in range(0, len(places), most):
            part = places[start : start + most]
            found = images.index_select(0, part.to(images.device))
            changed.append(found if operation is None else operation(found, part))
    return torch.cat(changed).index_select(0, order.argsort().to(images.device))


def chosen(which: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    """The changed pixels where a mask, bool (B, 1, H or 1, W or 1), holds; faster than ``where`` is for bytes."""
    return images ^ ((images ^ changed) & which.to(torch.uint8).neg())


def as_bytes(pixels: Tensor) -> Tensor:
    """Floats of [0, 255] as uint8, cut off; by way of int16, which processors are faster in."""
    return pixels.to(torch.int16).to(torch.uint8)


def each(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, (B,), as float32 (B, 1, 1, 1) beside its pixels."""
    return values.to(torch.float32).to(images.device)[:, None, None, None]


def random_boxes(images: Tensor, scale: Span, ratio: Span, spare: int = 0) -> tuple[Tensor, ...]:
    """A random box for each image, (B, C, H, W), the first of ten attempts that fits.

    Its area is a share of the image in scale, its height / width in ratio, and both sides are smaller than those of the
    image by `spare` pixels. Top, left, height and width in whole pixels, float32 (B,), and whether it fits, bool (B,).
    """
    count, _, height, width = images.shape
    area, shape, down, right = torch.rand(4, 10, count, device=images.device)
    area = (scale[0] + (scale[1] - scale[0]) * area) * height * width
    shape = log_uniform(shape, ratio)
    tall, wide = torch.sqrt(area * shape).round(), torch.sqrt(area / shape).round()
    fits = (tall <= height - spare) & (wide <= width - spare) & (tall >= 1) & (wide >= 1)
    first = fits.float().argmax(0, keepdim=True)
    tall, wide, down, right, fits = (x.gather(0, first)[0] for x in (tall, wide, down, right, fits))
    return torch.floor(down * (height - tall + 1)), torch.floor(right * (width - wide + 1)), tall, wide, fits


def rectangles(images: Tensor, top: Tensor, left: Tensor, tall: Tensor | int, wide: Tensor | int) -> Tensor:
    """True inside of one rectangle per image, bool (B, 1, H, W)."""
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # (B, W)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def log_uniform(draws: Tensor, span: Span) -> Tensor:
    """Draws in [0, 1) spread over a span so that a factor and its inverse are as likely."""
    low, high = math.log(span[0]), math.log(span[1])
    return torch.exp(low + (high - low) * draws)


def within(transform: nn.Module, most: int, **options: float) -> None:
    """Refuse options that are not between 0 and the most."""
    for name, value in options.items():
        message = f"{type(transform).__name__}: {name} must be between 0 and {most}, got {value}"
        refuse(ConfigError, (not 0 <= value <= most, message))


def rising(transform: nn.Module, least: float, most: float, **options: Span) -> None:
    """Refuse spans that do not rise, or reach beyond the least and the most."""
    for name, value in options.items():
        message = f"{type(transform).__name__}: {name} must be two rising numbers from {least:g} to {most:g}, got"
        refuse(ConfigError, (not least <= value[0] <= value[1] <= most, f"{message} {list(value)}"))
