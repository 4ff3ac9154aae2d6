"""Facts about datasets: given, read from files when they are first asked for, or computed from images."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vision_zoo.errors import ConfigError, refuse

T = TypeVar("T")


def lazy(compute: Callable[[Any], T]) -> T:
    """A fact that a dataset reads from its files when it is first asked for, where others state a constant."""
    return cast(T, cached_property(compute))


def per_channel(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel, or refuse the list by its name on the command line."""
    count = f"--data.{option} has {len(values)} values, but the images have {channels} channel(s)"
    refuse(
        ConfigError,
        (len(values) not in (1, channels), f"{count}: give one value, or one for each channel"),
        (not all(map(math.isfinite, values)), f"--data.{option} must be finite, got {list(values)}"),
        (option == "std" and min(values, default=1) <= 0, f"--data.std must be positive, got {list(values)}"),
    )
    return tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)


def evenly(indices: Tensor, count: int) -> Tensor:
    """Up to `count` of these indices, evenly spaced."""
    return indices[torch.linspace(0, max(len(indices) - 1, 0), min(count, len(indices))).round().long()]


def statistics(parts: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images, uint8 (N, C, H, W) in parts, as fractions of 255."""
    found = (torch.stack([channel.flatten().bincount(minlength=256) for channel in part.unbind(1)]) for part in parts)
    counts = cast(Tensor, sum(found)).double()  # (C, 256)
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)  # (C, 256)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-4, std, 1.0)  # a channel of one colour must not be divided by zero
    return tuple(round(x, 4) for x in mean.tolist()), tuple(round(x, 4) for x in std.tolist())
