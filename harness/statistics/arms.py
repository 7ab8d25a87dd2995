"""Differences between arms whose standard errors share what all arms say about the noise.

A variance from three seeds has two degrees of freedom, so a paired t-test alone throws most of the seeds' information
away. Here each arm's variance is shrunk towards the mean variance of the arms (the idea of Smyth's moderated t, Stat.
Appl. Genet. Mol. Biol. 3, 2004), more firmly from below than from above: an arm that looks quiet is believed little,
an arm that looks noisy is believed more. One very noisy arm does not make the quiet ones noisy: the mean that they are
shrunk towards is at most GUARD times the median. What the seeds have in common in all arms cancels in a difference,
and most of it is taken off. Degrees of freedom follow Satterthwaite, up to those of an analysis of variance with seeds
as blocks. docs/statistics.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.statistics.seeds import Difference, difference_of, paired_difference

Estimation = Literal["shared", "paired"]
FROM_BELOW = 12.0
"""Degrees of freedom of the mean variance beside an arm's own variance where the own one is smaller; never more than
the other arms have."""
FROM_ABOVE = 0.75
"""The same where the arm's own variance is larger."""
GUARD = 4.0
"""Limit of the mean variance that quiet arms are shrunk towards, in medians of the arms' variances."""
COMMON = 0.9
"""Share of the seeds' common variance that is taken off."""
LEAST = 0.02
"""The common variance never takes more than 1 - this of the mean variance."""
_NO_SPREAD = 1e-12


class Estimator:
    """Differences between arms over seeds, by one method.

    The result for two arms does not depend on the order of arms, scales with the values, and does not change if an
    arm with the same values as another one is added.
    """

    def __init__(self, values: Mapping[str, Mapping[int, float]], method: Estimation = "shared") -> None:
        self._values, self._method = values, method

    def difference(self, arm: str, than: str) -> Difference | None:
        """The mean difference `arm - than` over the seeds that both have, with its error; None without such a seed."""
        ours, theirs = self._values[arm], self._values[than]
        paired = paired_difference(ours, theirs)
        match self._method:
            case "paired":
                return paired
            case "shared":
                return paired and self._shared(paired, len(ours), len(theirs), arm, than)

    def _shared(self, paired: Difference, ours: int, theirs: int, arm: str, than: str) -> Difference:
        if paired.n < 2 or not self._pool:
            return difference_of(paired.n, paired.mean, paired.sd, None, None)
        (one, df_one), (other, df_other) = self._variance(arm, ours), self._variance(than, theirs)
        df = (one + other) ** 2 / (one**2 / df_one + other**2 / df_other)
        blocked = max(int(self._freedom.sum() - self._freedom.max()), paired.n - 1)
        return difference_of(paired.n, paired.mean, paired.sd, math.sqrt((one + other) / paired.n), min(df, blocked))

    def _variance(self, arm: str, seeds: int) -> tuple[float, float]:
        """Variance of an arm's value around what its seeds have in common, and its degrees of freedom."""
        own, freedom = float(np.var(list(self._values[arm].values()), ddof=1)), seeds - 1
        quiet = own < self._quiet * (1 - 1e-9)
        weight, mean = (FROM_BELOW, self._quiet) if quiet else (FROM_ABOVE, self._pool)
        weight = min(weight, max(int(self._freedom.sum()) - freedom, 0))
        pooled = max(mean - self._common, LEAST * mean)
        shrunk = freedom * max(own - self._common, LEAST * own) + weight * pooled
        return shrunk / (freedom + weight), freedom + weight

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        """Values [A, S] around each arm's mean, NaN where a cell is missing; equal arms once."""
        distinct = {tuple(sorted(seeds.items())): seeds for seeds in self._values.values() if len(seeds) > 1}
        every = sorted({seed for seeds in distinct.values() for seed in seeds})
        rows = [[seeds.get(seed, math.nan) - fmean(seeds.values()) for seed in every] for seeds in distinct.values()]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(every))

    @cached_property
    def _freedom(self) -> NDArray[np.int64]:
        """Degrees of freedom of each row of the table [A]."""
        seeds: NDArray[np.int64] = (~np.isnan(self._table)).sum(axis=1)
        return seeds - 1

    @cached_property
    def _pool(self) -> float:
        """Mean variance of the arms, weighted by degrees of freedom; 0 if nothing varies but by rounding."""
        freedom = int(self._freedom.sum())
        pool = float(np.nansum(self._table**2) / freedom) if freedom else 0.0
        size = max((abs(value) for seeds in self._values.values() for value in seeds.values()), default=0.0)
        return pool if math.sqrt(pool) > _NO_SPREAD * max(1.0, size) else 0.0

    @cached_property
    def _quiet(self) -> float:
        """The mean variance that quiet arms are shrunk towards. An arm without spread says nothing about it."""
        variances = np.nansum(self._table**2, axis=1) / self._freedom
        return min(self._pool, GUARD * float(np.median(variances[variances > _NO_SPREAD * self._pool])))

    @cached_property
    def _common(self) -> float:
        """The variance taken off: COMMON times the mean covariance of two arms, weighted as above, if positive."""
        there = (~np.isnan(self._table)).astype(np.float64)
        filled = np.nan_to_num(self._table)
        pairs, sums = there @ there.T, filled @ there.T
        products = filled @ filled.T - sums * sums.T / np.maximum(pairs, 1)
        upper = np.triu(pairs > 1, k=1)
        freedom = float((pairs[upper] - 1).sum())
        return COMMON * max(float(products[upper].sum()) / freedom, 0.0) if freedom else 0.0
