"""Images that are not 8 bits: one range of values, which becomes 0 to 255, for all images of a dataset."""

import math
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import ValueRange

Numbers = np.ndarray[Any, np.dtype[Any]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

LOOKED_AT = 128  # images that a range is learned from
_VALUES = 2**14  # of each of them
_TAILS = (0.001, 0.999)  # quantiles: what lies beyond, such as one bright pixel of an image, is cut off
_USUAL = ((0, 1), (-1, 1), (0, 255), *((0, 2**bits - 1) for bits in (10, 12, 14, 16)))  # the narrow ones first


def find_range(images: Iterable[Numbers | None], given: ValueRange) -> ValueRange:
    """The range of a dataset: the option value_range, or learned from some training images; one line tells it.

    The images are of any shape and type; None stands for one of 8 bits. What is no range is a ConfigError.
    """
    wrong = given is not None and not (len(given) == 2 and -math.inf < given[0] < given[1] < math.inf)
    refuse(ConfigError, (wrong, f"--data.value_range must be two rising numbers, got {given}"))
    count, rng, found, value_range = 0, np.random.default_rng(0), list[Numbers](), given
    for count, values in enumerate(images, start=1):  # noqa: B007
        if values is not None:
            some = values.ravel() if values.size <= _VALUES else values.flat[rng.integers(values.size, size=_VALUES)]
            found.append(some[np.isfinite(some)].astype(np.float64))
    what = "all are 8 bits: --data.value_range is not used"
    if found:
        low, high = value_range = given or _robust_range(np.concatenate(found), beside_8_bits=len(found) < count)
        what = f"{len(found)} are not 8 bits: values from {low:g} to {high:g} become 0 to 255"
        what += "; --data.value_range sets another range" * (given is None)
    if value_range is not None:
        rank_zero_only(print)(f"vision_zoo: of {count} training images looked at, {what}", file=sys.stderr)
    return value_range


def to_8_bits(values: Numbers, value_range: ValueRange) -> Pixels:
    """Numbers of any type as uint8 of the same shape: the range becomes 0 to 255, what is beyond it is cut off.

    Without a range it is the whole one of their type, 0 to 1 for floats, and a warning says so.
    """
    kind = values.dtype
    if value_range is None:
        value_range = (0, 1) if kind.kind == "f" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
        whole = f"values from {value_range[0]} to {value_range[1]} become 0 to 255"
        warnings.warn(f"images of {kind.name}, for which no range is known: {whole}", stacklevel=2)
    scaled = values.astype(np.result_type(kind, np.float32))
    refuse(ValueError, (np.isnan(scaled.max(initial=0)), "some of its pixels are not numbers"))
    scaled -= value_range[0]
    scaled *= 255 / (value_range[1] - value_range[0])
    return scaled.round().clip(0, 255).astype(np.uint8)


def _robust_range(values: Numbers, *, beside_8_bits: bool) -> tuple[float, float]:
    """The quantiles of values, float64 (N,), or the usual range that they fill.

    Beside images of 8 bits, which have their usual range, any usual one will do: both kinds must look alike.
    """
    low, high = np.quantile(values, _TAILS).tolist() if len(values) else (0.0, 1.0)
    if low == high:  # of almost all values
        low, high = float(values.min()), max(float(values.max()), low + 1e-6 * max(1, abs(low)))
    for least, most in _USUAL:
        if least <= low and high <= most and (beside_8_bits or high - low > 0.9 * (most - least)):
            return float(least), float(most)
    digits = 3 - math.floor(math.log10(high - low))
    return round(low, digits), round(high, digits)
