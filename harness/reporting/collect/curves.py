"""Learning curves from metrics.jsonl, averaged over an arm's finished runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.reporting.collect.results import Results, RunResult

MOST_POINTS = 200


@dataclass(frozen=True)
class LearningCurve:
    """One training metric of one arm."""

    arm: str
    steps: NDArray[np.float64]
    """[p], steps that every finished run of the arm has logged."""
    mean: NDArray[np.float64]
    """[p], over seeds."""
    low: NDArray[np.float64]
    """[p], the lowest seed."""
    high: NDArray[np.float64]
    """[p], the highest seed."""


def read_curves(results: Results, arms: Iterable[str], names: Iterable[str]) -> dict[str, list[LearningCurve]]:
    """The curves of each metric in `names` that the runs of `arms` have logged at two steps or more.

    A curve of more than 200 steps is averaged over neighbouring steps.
    """
    wanted = tuple(names)
    found: dict[str, list[LearningCurve]] = {name: [] for name in wanted}
    for arm in arms:
        logged = [_series(run, wanted) for run in results.by_arm[arm] if run.record is not None]
        for name in wanted:
            curve = _curve(arm, [series[name] for series in logged if series[name]])
            if curve is not None:
                found[name].append(curve)
    return {name: curves for name, curves in found.items() if curves}


def _series(run: RunResult, names: tuple[str, ...]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for line in run.lines():
        for name in names:
            if name in line.values:
                found[name][line.step] = line.values[name]
    return found


def _curve(arm: str, seeds: list[dict[int, float]]) -> LearningCurve | None:
    common = sorted(set.intersection(*(set(series) for series in seeds))) if seeds else []
    if len(common) < 2:
        return None
    values = np.array([[series[step] for step in common] for series in seeds])
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    return LearningCurve(arm, *(_thinned(line) for line in (np.array(common, dtype=float), mean, low, high)))


def _thinned(line: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(line) <= MOST_POINTS:
        return line
    return np.array([part.mean() for part in np.array_split(line, MOST_POINTS)])
