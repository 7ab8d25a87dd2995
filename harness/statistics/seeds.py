"""Statistics over a few seeds, which are replicates paired between arms. One seed gives no inference.

Sources: paired t-test and t-interval (Student 1908); Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
Scand. J. Statist. 6 (1979); power of the t-test by the noncentral t distribution (Cohen 1988, ch. 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from scipy import special

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 1000
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Summary:
    """Replicates of one arm."""

    n: int
    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None for one seed."""
    interval: Interval | None
    """t-interval of the mean. None for one seed, or if the replicates do not vary."""


@dataclass(frozen=True)
class Difference:
    """Difference between two arms over the seeds that both have."""

    n: int
    """Pairs of seeds."""
    mean: float
    sd: float | None
    """Sample standard deviation of the paired differences; None for one pair."""
    interval: Interval | None
    """t-interval of the mean difference. None for one pair, or if the differences do not vary."""
    p: float | None
    """Two-sided p-value of the paired t-test. None if there is no interval."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of replicates.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("there are no values to summarise")
    n, mean, sd = len(values), fmean(values), _sd(values)
    return Summary(n, mean, sd, _interval(n, mean, sd))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The paired difference `ours - theirs` over the seeds that both have; None if there is no such seed.

    Args:
        ours: values by seed.
        theirs: the baseline's values by seed.
    """
    deltas = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not deltas:
        return None
    n, mean, sd = len(deltas), fmean(deltas), _sd(deltas)
    interval = _interval(n, mean, sd)
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / (sd / math.sqrt(n)))) if interval and sd else None
    return Difference(n, mean, sd, interval, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the given order. None stays None and does not count as a comparison."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def power(effect: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Power of a paired t-test with `n` pairs for a true effect of `effect` standard deviations."""
    critical = _critical(n, confidence)
    shift = abs(effect) * math.sqrt(n)
    return 1 - _noncentral_t(n - 1, shift, critical) + _noncentral_t(n - 1, shift, -critical)


def more_seeds(difference: Difference) -> int | None:
    """Approximate number of additional seeds needed to distinguish the arms, at the current difference and spread.

    It is the smallest number that gives the paired t-test a power of 0.8. The spread comes from few seeds,
    so the number is a rough guide. None if there is no spread, or if more than 1000 seeds would be needed.
    """
    if difference.interval is None or not difference.sd or difference.mean == 0:
        return None
    effect = abs(difference.mean) / difference.sd
    if power(effect, MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle) >= POWER else (middle, high)
    return max(1, high - difference.n)


def _noncentral_t(degrees: int, shift: float, t: float) -> float:
    probability = float(special.nctdtr(degrees, shift, t))
    # scipy gives nan if a shift of many standard deviations leaves no probability below t
    return 0.0 if math.isnan(probability) else probability


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = fmean(values)
    sd = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))
    # values that differ only by rounding have no spread for an interval
    return 0.0 if sd <= _NO_SPREAD * max(1.0, max(map(abs, values))) else sd


@cache
def _critical(n: int, confidence: float) -> float:
    return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def _interval(n: int, mean: float, sd: float | None) -> Interval | None:
    if not sd:
        return None
    half = _critical(n, CONFIDENCE) * sd / math.sqrt(n)
    return Interval(mean - half, mean + half)
