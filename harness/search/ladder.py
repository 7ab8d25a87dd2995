"""The ladder: who goes on to the next rung, and what every configuration will be worth at the full length.

Promotion is that of asynchronous successive halving (Li et al., MLSys 2020, Algorithm 2): a paused configuration goes
on when it is among the best 1 / reduction of those that have reached its rung. The forecast is this project's: gains
from rung to rung are learnt from those that climbed them, so that the sampler sees all configurations at one fidelity.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from harness.spec.strategy import LadderPolicy

Losses = Mapping[int, float]
"""Lower is better, by evaluation."""
LEAST_PAIRS = 4
"""Fewer configurations that climbed a rung tell their mean gain only, no slope."""


def rungs(policy: LadderPolicy, length: int) -> tuple[int, ...]:
    """The evaluations at which configurations are paused; the last is the full length."""
    found, level = [], policy.first_rung
    while level * policy.reduction**0.5 < length:  # a last climb shorter than half a rung is none
        found.append(level)
        level *= policy.reduction
    return (*found, length)


def to_promote(policy: LadderPolicy, seen: Mapping[int, Losses], paused: Mapping[int, int], length: int) -> int | None:
    """The number of the configuration that should go on to its next rung; None if a new one should begin.

    Args:
        seen: losses of each configuration by its number.
        paused: the rung at which each paused configuration waits.
    """
    for rung in reversed(rungs(policy, length)[:-1]):
        reached = sorted((losses[rung], number) for number, losses in seen.items() if rung in losses)
        best = reached[: len(reached) // policy.reduction]
        for _, number in best:
            if paused.get(number) == rung:
                return number
    return None


def forecasts(policy: LadderPolicy, seen: Mapping[int, Losses], length: int) -> dict[int, float]:
    """The loss that each configuration is expected to have at the full length."""
    levels = rungs(policy, length)
    found: dict[int, float] = {}
    lines = [_line(seen, low, high) for low, high in itertools.pairwise(levels)]
    for number, losses in seen.items():
        reached = [place for place, level in enumerate(levels) if level in losses]
        if reached:
            value = losses[levels[reached[-1]]]
            for slope, offset in lines[reached[-1] :]:
                value = offset + slope * value
            found[number] = value
    return found


def _line(seen: Mapping[int, Losses], low: int, high: int) -> tuple[float, float]:
    """Slope and offset of the loss at rung `high` over that at rung `low`."""
    pairs = [(losses[low], losses[high]) for losses in seen.values() if low in losses and high in losses]
    return _fitted(pairs)


def _fitted(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    if not pairs:
        return 1.0, 0.0
    x, y = np.array(pairs).T
    slope = 1.0
    if len(pairs) >= LEAST_PAIRS and x.std() > 0:
        slope = float(np.clip(np.cov(x, y)[0, 1] / x.var(ddof=1), 0.0, 1.0))
    return slope, float(y.mean() - slope * x.mean())
