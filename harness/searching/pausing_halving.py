"""Pausing successive halving: which configuration to promote to its next rung, and forecasts at full length.

Promotion is that of asynchronous successive halving (Li et al., MLSys 2020, Algorithm 2): a paused configuration is
promoted when it is among the best 1 / reduction of those that have reached its rung. This project adds probes and
forecasts. The first configurations, the probes, are trained to the end, and a rung whose ranking of the probes differs
from the final one is left out. The gain from rung to rung is fitted on the configurations that have reached both, so
that the sampler sees all configurations at one fidelity.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from harness.config.strategy import LadderPolicy

Losses = Mapping[int, float]
"""Losses by evaluation; lower is better."""
LEAST_PROBES = 4
"""Minimum number of probes for judging a rung."""
LEAST_PAIRS = 4
"""Minimum number of configurations for fitting a slope; with fewer, only the mean gain is used."""


def rungs(policy: LadderPolicy, length: int) -> tuple[int, ...]:
    """The evaluations at which configurations are paused; the last is the full length."""
    found, level = [], policy.first_rung
    while level * policy.reduction**0.5 < length:  # no rung within half a rung (in log scale) of the end
        found.append(level)
        level *= policy.reduction
    return (*found, length)


def to_promote(policy: LadderPolicy, seen: Mapping[int, Losses], paused: Mapping[int, int], length: int) -> int | None:
    """The number of the configuration to promote to its next rung; None if a new one should begin.

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

    A rung is left out if Spearman's rank correlation between the probes' losses there and at full length is below
    `trust`. Probes are the first configurations that were evaluated at every rung up to the end. Until LEAST_PROBES of
    them are known, all rungs are used.
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
    """Spearman's rank correlation; 0 if one side does not vary."""
    if np.ptp(early) == 0 or np.ptp(late) == 0:
        return 0.0
    return float(stats.spearmanr(early, late).statistic)


def forecasts(policy: LadderPolicy, seen: Mapping[int, Losses], length: int) -> dict[int, float]:
    """The expected loss of each configuration at full length."""
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
    """Slope and offset of the loss at rung `high` as a function of the loss at rung `low`."""
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
