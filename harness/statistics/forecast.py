"""What planned seeds will be able to tell, from the noise of finished arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special

from harness.statistics.arms import Estimation, Estimator
from harness.statistics.seeds import CONFIDENCE, t_interval

SPREAD = (0.10, 0.90)
"""Quantiles of the range of a forecast."""
ARMS_DIFFER = 2.0
"""Degrees of freedom with which one ablation knows the noise of another: arms differ in it. Chosen on lcdb."""


@dataclass(frozen=True)
class Forecast:
    """The smallest difference that planned seeds can tell, on the metric's own scale."""

    size: float
    low: float
    high: float
    """It comes out between these in about 80 % of ablations."""
    arms: int
    """Finished arms that it is from."""


def forecast(
    finished: Sequence[Mapping[str, Mapping[int, float]]], seeds: int, arms: int, claims: int, method: Estimation
) -> Forecast | None:
    """The difference that the t-test will tell, whatever Holm's procedure makes of the other claims.

    Args:
        finished: ablations with the same set, metric and length: values by arm and seed.
        seeds: planned seeds of each arm.
        arms: planned arms.
        claims: claims that are corrected as one family.

    Returns:
        None if no two arms have two seeds in common, or fewer than two seeds are planned.
    """
    variances = []  # of a difference between two arms at one seed
    for table in finished:
        estimator, names = Estimator(table, method), list(table)
        found = [estimator.difference(arm, names[0]) for arm in names[1:]]
        variances += [one.error**2 * one.n for one in found if one and one.error]
    if not variances or seeds < 2:
        return None
    variance = math.exp(sum(map(math.log, variances)) / len(variances))
    freedom = (arms - 1) * (seeds - 1) if method == "shared" else seeds - 1
    size = t_interval(0.0, math.sqrt(variance / seeds), freedom, 1 - (1 - CONFIDENCE) / max(claims, 1)).high
    low, high = (size * math.sqrt(float(special.fdtri(min(freedom, ARMS_DIFFER), ARMS_DIFFER, q))) for q in SPREAD)
    return Forecast(size, low, high, sum(map(len, finished)))
