"""Looking at results several times without more errors: group-sequential tests of claims over seeds.

A look is a test at `n` of at most `N` seeds. Testing at 5 % at every look would find differences where there are none
far more often than in 5 % of cases. Instead, the looks share the 5 %: by the seeds n, a test has spent its error rate
times n / N (Lan & DeMets, Biometrika 70, 1983, with the linear spending function). The level of a look follows from the
joint distribution of all looks' statistics, which are sums of independent terms (Armitage, McPherson & Rowe, J. R.
Stat. Soc. A 132, 1969), and applies to the p-value of the t-test (Jennison & Turnbull, Group Sequential Methods, 2000,
section 4.4). Several claims share the rate by Holm's procedure, in which a decided claim leaves its part to the others
(Maurer & Bretz, Stat. Biopharm. Res. 5, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy import special

from harness.statistics.seeds import CONFIDENCE, Difference, equality_p

ERROR = 1 - CONFIDENCE
"""Error rate of all looks together."""
HOPE = 0.4
"""A claim is given no more seeds if the probability that the last look decides it is smaller."""
Judged = Literal["different", "equal", "open", "given up"]
_GRID = 401
_REACH = 8.0


@dataclass(frozen=True)
class Evidence:
    """What the seeds so far say about a claim."""

    difference: Difference | None
    margin: float | None

    @property
    def p(self) -> float | None:
        """Of no difference."""
        return self.difference.p if self.difference else None

    @property
    def equality_p(self) -> float | None:
        """Of a difference beyond the margin."""
        return equality_p(self.difference, self.margin) if self.difference and self.margin is not None else None


@cache
def nominal_levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """One-sided significance level of each look, so that all looks together err with probability `alpha`.

    For a two-sided test, double the levels for `alpha` / 2.

    Args:
        looks: number of seeds at each look, increasing.
    """
    levels: list[float] = []
    grid, weights = np.zeros(1), np.ones(1)  # distribution of the sum so far over paths that have crossed no bound
    for before, n in zip((0, *looks), looks, strict=False):
        spend = alpha * (n - before) / looks[-1]
        step = math.sqrt(n - before)
        bound = _bound(grid, weights, step, spend, math.sqrt(n))
        levels.append(float(special.ndtr(-bound / math.sqrt(n))))
        nodes = np.linspace(-_REACH * math.sqrt(n), bound, _GRID)
        width = nodes[1] - nodes[0]
        simpson = np.ones(_GRID)
        simpson[1:-1:2], simpson[2:-1:2] = 4, 2
        density = np.exp(-(((nodes[:, None] - grid) / step) ** 2) / 2) @ weights / (step * math.sqrt(2 * math.pi))
        grid, weights = nodes, density * simpson * width / 3
    return tuple(levels)


def _bound(grid: np.ndarray, weights: np.ndarray, step: float, spend: float, scale: float) -> float:
    """The bound that the next sum exceeds with probability `spend`, by bisection."""
    low, high = -_REACH * scale, _REACH * scale
    for _ in range(60):
        middle = (low + high) / 2
        if float(special.ndtr(-(middle - grid) / step) @ weights) > spend:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@dataclass(frozen=True)
class Rounds:
    """The looks at the claims of an ablation."""

    looks: tuple[int, ...]
    """Number of seeds at each look, increasing."""

    def judge(self, claims: Sequence[Evidence], look: int, settled: Sequence[Judged]) -> list[Judged]:
        """What look number `look` (from 0) says of each claim that is still open.

        Args:
            settled: what earlier looks said of the other claims.
        """
        different = self._rejected([one.p for one in claims], look, 2, settled.count("different"), len(settled))
        equal = self._rejected([one.equality_p for one in claims], look, 1, settled.count("equal"), len(settled))
        found: list[Judged] = []
        for one, is_different, is_equal in zip(claims, different, equal, strict=True):
            if is_equal:
                found.append("equal")
            elif is_different:
                found.append("different")
            else:
                hope = look + 1 < len(self.looks) and self.hope(one, look, len(claims)) >= HOPE
                found.append("open" if hope else "given up")
        return found

    def hope(self, one: Evidence, look: int, family: int) -> float:
        """Probability that the last look decides a claim, if the difference and its spread are what they are now.

        The difference at the last look is predicted as normal around the present one, by what its seeds leave open.

        Args:
            family: number of claims that share the error rate.
        """
        if one.difference is None or one.difference.error is None:
            return 1.0
        n, most, delta = self.looks[look], self.looks[-1], one.difference.mean
        last, spread = one.difference.error * math.sqrt(n / most), one.difference.error * math.sqrt(1 - n / most)
        away = self._quantile(2, family) * last
        chance = float(special.ndtr((delta - away) / spread) + special.ndtr((-delta - away) / spread))
        if one.margin is not None and (room := one.margin - self._quantile(1, family) * last) > 0:
            chance += float(special.ndtr((room - delta) / spread) - special.ndtr((-room - delta) / spread))
        return chance

    def _quantile(self, sides: int, family: int) -> float:
        """Standard errors from the null at which the last look rejects."""
        return -float(special.ndtri(nominal_levels(self.looks, ERROR / sides / family)[-1]))

    def _rejected(
        self, p_values: Sequence[float | None], look: int, sides: int, rejected: int, others: int
    ) -> list[bool]:
        """Which hypotheses a look rejects, by Holm's procedure over all that no look has rejected.

        Args:
            p_values: of the open hypotheses; None is never rejected.
            sides: 2 for a difference in either direction, 1 for two one-sided tests of equality.
            rejected: how many of the `others` in the family were rejected. The rest keep their share of the error rate.
        """
        known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
        found, family = [False] * len(p_values), len(p_values) + others - rejected
        for rank, (p, place) in enumerate(known):
            if p > sides * nominal_levels(self.looks, ERROR / sides / (family - rank))[look]:
                break
            found[place] = True
        return found
