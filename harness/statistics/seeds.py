"""Statistics over a few seeds, which are replicates paired between arms. One seed gives no inference.

Sources: paired t-test and t-interval (Student 1908); Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
Scand. J. Statist. 6 (1979); two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from scipy import special

CONFIDENCE = 0.95
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
    """Marginal t-interval of the mean difference. None for one pair, or if nothing varies."""
    p: float | None
    """Two-sided p-value of the t-test. None if there is no interval."""
    error: float | None
    """Standard error of the mean difference. None if there is no interval."""
    df: float | None
    """Degrees of freedom of the standard error. None if there is no interval."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of replicates.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("there are no values to summarise")
    n, mean, sd = len(values), fmean(values), _sd(values)
    return Summary(n, mean, sd, t_interval(mean, sd / math.sqrt(n), n - 1) if sd else None)


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
    return difference_of(n, mean, sd, sd / math.sqrt(n) if sd else None, n - 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the given order. None stays None and does not count as a comparison."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def equality_p(delta: Difference, margin: float) -> float | None:
    """p-value of two one-sided t-tests (Schuirmann 1987): small where the true difference lies within `margin`.

    None if the difference has no standard error.
    """
    if delta.error is None or delta.df is None:
        return None
    sides = (delta.mean - margin) / delta.error, -(delta.mean + margin) / delta.error
    return max(float(special.stdtr(delta.df, side)) for side in sides)


def difference_of(n: int, mean: float, sd: float | None, error: float | None, df: float | None) -> Difference:
    """A difference with the t-interval and the p-value that follow from its standard error and degrees of freedom."""
    if not error or df is None:
        return Difference(n, mean, sd, None, None, None, None)
    p = 2 * float(special.stdtr(df, -abs(mean) / error))
    return Difference(n, mean, sd, t_interval(mean, error, df), p, error, df)


def t_interval(mean: float, error: float, df: float, confidence: float = CONFIDENCE) -> Interval:
    """The two-sided t-interval of a mean."""
    half = _critical(df, confidence) * error
    return Interval(mean - half, mean + half)


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = fmean(values)
    sd = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))
    # values that differ only by rounding have no spread for an interval
    return 0.0 if sd <= _NO_SPREAD * max(1.0, max(map(abs, values))) else sd


@cache
def _critical(df: float, confidence: float) -> float:
    return float(special.stdtrit(df, (1 + confidence) / 2))
