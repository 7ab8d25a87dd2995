"""Where axes have numeric levels: the metric over each of them, a line for each combination of everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.experiment import flatten
from harness.planning.plan import Arm
from harness.reporting.collect.comparison import Column
from harness.reporting.collect.design import told
from harness.reporting.collect.results import Results
from harness.statistics import Summary


@dataclass(frozen=True)
class Line:
    """Arms that differ along one axis only."""

    label: str
    """Levels of the other axes; empty if there is no other."""
    points: tuple[tuple[float, Summary], ...]
    """By level, ascending."""


@dataclass(frozen=True)
class Factor:
    """One numeric axis."""

    axis: str
    lines: tuple[Line, ...]


def factors(results: Results, column: Column) -> list[Factor]:
    """Every numeric axis along which a line of two or more arms has results."""
    axes = results.plan.ablation.axes
    levels = {arm.name: _levels(arm, axes) for arm in results.plan.arms}
    named = {arm.name: _named_part(results, arm) for arm in results.plan.arms}
    found = []
    for axis, values in axes.items():
        numeric = [number for number in map(_number, values) if number is not None]
        if len(numeric) < 2:
            continue
        lines: dict[str, list[tuple[float, Summary]]] = defaultdict(list)
        for one in column.comparable:
            number = _number(levels[one.arm].get(axis))
            if number is not None and one.summary is not None:
                lines[_others(named[one.arm], levels[one.arm], axes, axis)].append((number, one.summary))
        kept = [Line(label, tuple(sorted(points, key=_x))) for label, points in lines.items() if len(points) > 1]
        if kept:
            found.append(Factor(axis, tuple(sorted(kept, key=lambda line: line.label))))
    return found


def _x(point: tuple[float, Summary]) -> float:
    return point[0]


def _levels(arm: Arm, axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {
        axis: level
        for axis, values in axes.items()
        for level in values
        if flatten({axis: level}).items() <= arm.changes.items()
    }


def _named_part(results: Results, arm: Arm) -> str:
    names = [name for name in results.plan.ablation.arms if arm.name == name or arm.name.startswith(f"{name}, ")]
    return max(names, key=len, default="")


def _others(name: str, levels: Mapping[str, Any], axes: Mapping[str, tuple[Any, ...]], axis: str) -> str:
    """The levels of all other axes in words; it tells any two of their combinations apart."""
    parts = [f"{path.removesuffix('.kind')} {told(levels[path], axes[path])}" for path in levels if path != axis]
    return ", ".join([name] * bool(name) + parts)


def _number(level: Any) -> float | None:
    """A level as a number: itself, or the only number in a table like `{quantile = 0.99}`."""
    if isinstance(level, dict) and len(level) == 1:
        return _number(next(iter(level.values())))
    return float(level) if isinstance(level, (int, float)) and not isinstance(level, bool) else None
