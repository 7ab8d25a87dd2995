"""FastBO's policy: decide how to continue a configuration from its evaluations so far. Pure functions, without files.

Source: Jiang et al., CVPR 2024 (FastBO), Definitions 1 and 2, Sections 4.2 and 4.3, Algorithm 1. Resource levels r are
numbers of evaluations, 1 to r_max. Our choices where the paper leaves them open: C(2r) beyond r_max is the curve's
value there, e and s are whole numbers from w to r_max, and a curve that never saturates has s = r_max.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.config.strategy import FastBOPolicy
from harness.searching.curves import FittedCurve, fit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Continue:
    """Continue training: the warm-up is not over."""


@dataclass(frozen=True)
class StopAt:
    """Train to the efficient point; the sampler receives the metric at that point."""

    efficient: int
    saturation: int
    residual: float
    """Root mean square residual of the fit."""


@dataclass(frozen=True)
class Terminate:
    """Stop here, because the error rose twice in a row; the sampler receives the last value."""

    at: int


Decision = Continue | StopAt | Terminate


def warmup_point(policy: FastBOPolicy, length: int) -> int:
    """w = r_min + warmup * (r_max - r_min), rounded, and at least two evaluations: fewer make no curve."""
    return min(max(round(1 + policy.warmup * (length - 1)), 2), length)


def decide(policy: FastBOPolicy, errors: Mapping[int, float], length: int) -> Decision:
    """Decide how to continue a configuration.

    Args:
        errors: the error (0 to 1, lower is better) after each evaluation, from 1 on.
        length: evaluations of a full run, r_max.
    """
    point = warmup_point(policy, length)
    seen = [errors[level] for level in range(1, min(len(errors), point) + 1)]
    for level in range(3, len(seen) + 1):
        if _rises(policy, seen, level - 1) and _rises(policy, seen, level):
            return Terminate(level)
    if len(seen) < point:
        return Continue()
    levels = [level for level in range(1, point + 1) if not _is_left_out(policy, seen, level)]
    curve = fit(levels, [seen[level - 1] for level in levels], length)
    efficient, saturation = points(policy, curve, length)
    return StopAt(max(efficient, point), max(saturation, point), curve.residual)


def points(policy: FastBOPolicy, curve: FittedCurve, length: int) -> tuple[int, int]:
    """The efficient and the saturation point of a curve, from 1 to `length`."""
    levels = np.arange(1, length + 1, dtype=float)
    values, doubled = curve(levels), curve(2 * levels)
    scale = _scale(policy, values)
    efficient = _first(values - doubled < policy.efficient_below * scale, length)
    change = np.array([np.abs(values[level:] - values[level - 1]).max(initial=0.0) for level in range(1, length + 1)])
    return efficient, _first(change < policy.saturated_below * scale, length)


def promoted(policy: FastBOPolicy, configurations: int, workers: int) -> int:
    """Number of configurations that are resumed to their saturation points at the end."""
    share = math.ceil(policy.promoted_share * configurations)
    number = max(share, workers) if policy.promoted == "at_least_workers" else min(share, workers)
    return min(number, configurations)


def _scale(policy: FastBOPolicy, values: Array) -> float:
    return 1.0 if policy.thresholds == "absolute" else max(float(values[0] - values[-1]), 0.0)


def _first(holds: NDArray[np.bool_], length: int) -> int:
    return int(np.argmax(holds)) + 1 if holds.any() else length


def _rises(policy: FastBOPolicy, seen: list[float], level: int) -> bool:
    """Whether the error at `level` exceeds the previous one by more than the ratio."""
    before, now = seen[level - 2], seen[level - 1]
    return now - before > policy.drop_ratio * before


def _is_left_out(policy: FastBOPolicy, seen: list[float], level: int) -> bool:
    """Whether to leave out `level`: the error rises there, and does not rise further at the next evaluation."""
    inside = 1 < level < len(seen)
    return (
        policy.leave_out_drop
        and inside
        and len(seen) > 3
        and _rises(policy, seen, level)
        and not _rises(policy, seen, level + 1)
    )
