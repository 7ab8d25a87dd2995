"""The ladder: who goes on to the next rung, and what every configuration will be worth at the full length.

Promotion is that of asynchronous successive halving (Li et al., MLSys 2020, Algorithm 2): a paused configuration goes
on when it is among the best 1 / reduction of those that have reached its rung. Probes and forecast are this project's:
the first configurations are trained to the end, and rungs that order them otherwise are left out; gains from rung to
rung are learnt from those that climbed them, so that the sampler sees all configurations at one fidelity.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from harness.config.strategy import LadderPolicy

Losses = Mapping[int, float]
"""Lower is better, by evaluation."""
LEAST_PROBES = 4
"""Fewer probes say nothing about a rung."""
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
    for rung in reversed(telling(policy, seen, length)[:-1]):
        reached = sorted((losses[rung], number) for number, losses in seen.items() if rung in losses)
        best = reached[: len(reached) // policy.reduction]
        for _, number in best:
            if paused.get(number) == rung:
                return number
    return None


def telling(policy: LadderPolicy, seen: Mapping[int, Losses], length: int) -> tuple[int, ...]:
    """The rungs at which a configuration may be paused, and the full length.

    A rung that orders the probes otherwise than the full length does is none of them: Spearman's rank correlation is
    below `trust`. Probes are the first that were evaluated at every rung up to the end. Until LEAST_PROBES of them are
    known, all rungs are taken.
    """
    levels = rungs(policy, length)
    complete = [losses for _, losses in sorted(seen.items()) if losses.keys() >= set(levels)]
    probes = complete[: policy.probes]
    if len(probes) < LEAST_PROBES:
        return levels
    ends = [losses[length] for losses in probes]
    agreeing = [one for one in levels[:-1] if _agreement([losses[one] for losses in probes], ends) >= policy.trust]
    return (*agreeing, length)


def _agreement(early: Sequence[float], late: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one side does not vary."""
    if np.ptp(early) == 0 or np.ptp(late) == 0:
        return 0.0
    return float(stats.spearmanr(early, late).statistic)


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
