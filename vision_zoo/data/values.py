"""Images that are not 8 bits: one range of values, which becomes 0 to 255, for all images of a dataset."""

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import ValueRange

Numbers = np.ndarray[Any, np.dtype[Any]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

LOOKED_AT = 128  # images that a range is learned from
_VALUES = 2**14  # of each of them
_TAILS = (0.001, 0.999)  # quantiles: what lies beyond is one bright or dead pixel in a thousand, and is cut off
_USUAL = ((0, 1), (-1, 1), (0, 255), *((0, 2**bits - 1) for bits in (10, 12, 14, 16)))  # the narrow ones first


def check_range(given: Sequence[float] | None) -> ValueRange | None:
    """The option value_range as (low, high), or None; what is no range is refused."""
    if given is None:
        return None
    wrong = len(given) != 2 or not all(map(math.isfinite, given)) or not given[0] < given[1]
    refuse(ConfigError, (wrong, f"--data.value_range must be two rising numbers, got {list(given)}"))
    return float(given[0]), float(given[1])


def find_range(images: Iterable[Numbers | None], given: ValueRange | None = None) -> ValueRange | None:
    """The range of a dataset, given or learned, and one line about it on standard error.

    Args:
        images: some training images, of any shape and type; None stands for one of 8 bits.
        given: what the user said.

    Returns:
        (low, high), the values that become 0 and 255; None where all images are 8 bits.
    """
    count, rng, found = 0, np.random.default_rng(0), list[Numbers]()
    for count, values in enumerate(images, start=1):  # noqa: B007
        if values is not None:
            some = values.ravel() if values.size <= _VALUES else values.flat[rng.integers(values.size, size=_VALUES)]
            found.append(some[np.isfinite(some)].astype(np.float64))
    if not found:
        if given is not None:
            rank_zero_warn("--data.value_range is not used: all images that were looked at are 8 bits")
        return given
    low, high = given or _robust_range(np.concatenate(found), beside_8_bits=len(found) < count)
    learned = f"(learned from {len(found)} training images; --data.value_range sets another range)" * (given is None)
    what = f"vision_zoo: images that are not 8 bits: values from {low:g} to {high:g} become 0 to 255"
    rank_zero_only(print)(f"{what} {learned}".rstrip(), file=sys.stderr)
    return low, high


def to_8_bits(values: Numbers, value_range: ValueRange | None) -> Pixels:
    """Numbers of any type as uint8 of the same shape: the range becomes 0 to 255, what is beyond it is cut off.

    Without a range it is the whole one of their type, 0 to 1 for floats, and a warning says so.

    Raises:
        ValueError: if some of them are not numbers.
    """
    if value_range is None:
        kind = values.dtype
        value_range = (0, 1) if kind.kind == "f" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
        text = f"images of {kind.name}, for which no range is known: values from {value_range[0]} to {value_range[1]}"
        warnings.warn(f"{text} become 0 to 255", stacklevel=2)
    low, high = value_range
    scaled = values.astype(np.result_type(values.dtype, np.float32))
    if np.isnan(scaled.max(initial=0)):
        raise ValueError("some of its pixels are not numbers")
    scaled -= low
    scaled *= 255 / (high - low)
    return scaled.round().clip(0, 255).astype(np.uint8)


def _robust_range(values: Numbers, *, beside_8_bits: bool) -> ValueRange:
    """The quantiles of values, float64 (N,); the usual range around them where they fill it.

    Beside images of 8 bits, which have their usual range, any usual range will do, so that both kinds look alike.
    """
    low, high = np.quantile(values, _TAILS).tolist() if len(values) else (0.0, 1.0)
    if low == high:  # of almost all values
        low, high = float(values.min()), float(values.max())
    filled = 0.0 if beside_8_bits else 0.9
    for least, most in _USUAL:
        if least <= low and high <= most and high - low >= filled * (most - least):
            return float(least), float(most)
    digits = 3 - math.floor(math.log10(high - low)) if high > low else 0
    return round(low, digits), round(high, digits) if high > low else low + 1
