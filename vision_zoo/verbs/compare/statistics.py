"""Whether a difference of accuracies is more than chance: over the images that it was measured on, and over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, nct, norm, t

DRAWS = 10_000  # of the bootstrap
FEW = 15  # discordant images, for which it does not serve
ALPHA = 0.05  # a difference is told where p is not above
POWER = 0.8  # the chance to tell a difference that is there, for how much would do
MOST = 10**9  # images or seeds
ROUNDING = 1e-9  # differences of accuracies that are none

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The difference of two groups over the seeds of their runs."""

    difference: float  # of mean accuracies, the second less the first
    low: float  # of the 95 % interval
    high: float
    p: float  # of no difference
    paired: bool
    deviation: float  # of one difference: of the pairs, or of two runs with any seeds
    freedom: float  # degrees of freedom for each run that a group has beyond one


def interval(differences: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences (N,), by percentiles (Efron 1979).

    Images are drawn with replacement. As only their mean counts, a draw is one of how often each value comes, by the
    multinomial distribution. In simulations of paired accuracies, with 15 to 200 discordant images, bias-corrected and
    accelerated intervals (Efron 1987) covered no better: 94 to 96 of 100 cases, percentiles too. Of single runs with
    fewer discordant images, the interval of Agresti and Min (2005, https://doi.org/10.1002/sim.1781), never empty.
    """
    discordant, total = np.count_nonzero(differences), len(differences) + 2
    if discordant < FEW and np.isin(differences, (-1, 0, 1)).all():
        mean = float(differences.sum()) / total
        half = float(norm.isf(ALPHA / 2)) * math.sqrt(discordant + 1 - total * mean * mean) / total
        return mean - half, mean + half
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), DRAWS)
    low, high = np.quantile(drawn @ values / len(differences), (ALPHA / 2, 1 - ALPHA / 2))
    return float(low), float(high)


def over_images(differences: Floats) -> float:
    """The p-value of no difference, of paired differences (N,).

    For single runs, whose differences are -1, 0 and 1, McNemar's exact test (McNemar 1947): of the images that only one
    of the two gets right, each is as likely to be right in one as in the other. For the means of several runs, the
    paired test of their mean by the normal distribution.
    """
    first, second = int((differences == -1).sum()), int((differences == 1).sum())
    if first + second == np.count_nonzero(differences) or len(differences) < 2:
        return float(binomtest(second, first + second).pvalue) if first + second else 1.0
    return float(2 * norm.sf(abs(differences.mean()) / differences.std(ddof=1) * math.sqrt(len(differences))))


def over_seeds(
    first: Sequence[float], second: Sequence[float], paired: bool, least: Sequence[float] = (0, 0)
) -> Spread:
    """The difference of the accuracies of runs: Student's paired test, or Welch's (1947) for those that are no pairs.

    Args:
        first: accuracies, two at least.
        second: likewise; as many, in the order of their seeds, where they are paired.
        paired: whether they are.
        least: the variance of each where its accuracies are equal: by chance, if its runs answer otherwise.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if paired and _variance(a) and not _variance(b - a):  # by chance, which says nothing of other seeds
        paired = False
    variances = [_variance(b - a) or sum(least)] if paired else [_variance(a) or least[0], _variance(b) or least[1]]
    deviation, difference = math.sqrt(sum(variances)), float(b.mean() - a.mean())
    if deviation == 0:  # seeds decide nothing
        return Spread(difference, difference, difference, float(abs(difference) <= ROUNDING), paired, 0.0, 1.0)
    counts = [len(b)] if paired else [len(a), len(b)]
    parts = [variance / count for variance, count in zip(variances, counts, strict=True)]
    of_all = sum(parts) ** 2 / sum(part * part / (count - 1) for part, count in zip(parts, counts, strict=True))
    error = math.sqrt(sum(parts))
    half, p = float(t.isf(ALPHA / 2, of_all)) * error, float(2 * t.sf(abs(difference) / error, of_all))
    freedom = sum(variances) ** 2 / sum(v * v for v in variances)
    return Spread(difference, difference - half, difference + half, p, paired, deviation, freedom)


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if np.ptp(values) > ROUNDING else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, so corrected that all together err in 5 % of the cases (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in corrected]


def images_needed(differences: Floats, alpha: float = ALPHA) -> int | None:
    """How many images would tell a mean of paired differences (N,) like this one from 0; None if any number.

    Connor (1987), https://doi.org/10.2307/2531961, for McNemar's test: with the share of discordant images in place of
    the mean square, which it is for single runs.
    """
    mean, square = float(differences.mean()), float((differences**2).mean())
    if mean == 0:
        return None
    limit, power = norm.isf(alpha / 2), norm.isf(1 - POWER)
    count = ((limit * math.sqrt(square) + power * math.sqrt(square - mean * mean)) / mean) ** 2
    return math.ceil(count) if count < MOST else None


def seeds_needed(spread: Spread, alpha: float = ALPHA) -> int | None:
    """How many seeds of each group would tell a difference like this one; None if any number.

    The power of the t test by the noncentral t distribution (Cohen 1988, Statistical Power Analysis, chapter 2).
    """

    def power(count: int) -> float:
        freedom, shift = spread.freedom * (count - 1), abs(spread.difference) / spread.deviation * math.sqrt(count)
        return float(nct.sf(t.isf(alpha / 2, freedom), freedom, shift))

    if not spread.difference or not spread.deviation:
        return None
    about = math.ceil(((norm.isf(alpha / 2) + norm.isf(1 - POWER)) * spread.deviation / spread.difference) ** 2)
    if about > 10_000:  # where the normal distribution is as good
        return about if about < MOST else None
    return next(count for count in range(max(2, about - 1), about + 100) if power(count) >= POWER)
