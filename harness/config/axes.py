"""Axes: factors with their levels, the cells that they form, and the names of these cells."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from harness.config.explain import nearest
from harness.config.overrides import Table

Axes = dict[str, tuple[Any, ...]]
MOST_CELLS = 20_000
Combine = Literal["product", "zip", "one_at_a_time"]


def check_axes(axes: Axes, combine: Combine, exclude: Sequence[Table]) -> None:
    """Refuse axes that cannot form cells.

    Raises:
        ValueError: an axis has no levels, zipped axes differ in length, or a rule of `exclude` matches no cell.
    """
    for path, levels in axes.items():
        if not levels:
            raise ValueError(f"axes.{path} has no levels; list its values")
    if combine == "zip" and len({len(levels) for levels in axes.values()}) > 1:
        lengths = ", ".join(f"{path} has {len(levels)}" for path, levels in axes.items())
        raise ValueError(f'combine = "zip" needs axes of equal length: {lengths}')
    if (cells := count_cells(axes, combine)) > MOST_CELLS:
        raise ValueError(f"the axes have {cells:,} combinations, more than {MOST_CELLS:,}: remove levels")
    for number, rule in enumerate(exclude):
        for path in rule:
            if path not in axes:
                known = nearest(path, axes) if axes else "there are no [axes]"
                raise ValueError(f"exclude[{number}] names {path!r}, which is not an axis; {known}")
        if not rule or not any(_matches(cell, rule) for cell in _combinations(axes, combine)):
            raise ValueError(f"exclude[{number}] matches no combination of the axes; correct or remove it")


def count_cells(axes: Axes, combine: Combine) -> int:
    """Number of cells, without making them; excluded ones count too."""
    sizes = [len(levels) for levels in axes.values()]
    match combine if axes else "product":
        case "zip":
            return min(sizes)
        case "one_at_a_time":
            return 1 + sum(size - 1 for size in sizes)
        case _:
            return math.prod(sizes)


def named_cells(axes: Axes, combine: Combine, exclude: Sequence[Table]) -> Iterator[tuple[str, Table]]:
    """Every cell that is not excluded, as (name, level by path). Without axes there is one cell without a name."""
    names = {path: _level_names(levels) for path, levels in axes.items()}
    kept: Axes = {path: tuple(enumerate(levels)) for path, levels in axes.items()}
    for numbered in _combinations(kept, combine):
        cell = {path: level for path, (_, level) in numbered.items()}
        if not any(_matches(cell, rule) for rule in exclude):
            yield ", ".join(f"{path}={names[path][number]}" for path, (number, _) in numbered.items()), cell


def _level_names(levels: Sequence[Any]) -> list[str]:
    """Levels in arms' names: a table appears as its `kind`, or in full if two tables have the same kind."""
    short = [level_name(level) for level in levels]
    shared = Counter(short)
    return [
        _in_full(level) if isinstance(level, dict) and shared[name] > 1 else name
        for name, level in zip(short, levels, strict=True)
    ]


def level_name(level: Any) -> str:
    """A level in an arm's name: a table appears as its `kind`, anything else as text."""
    if isinstance(level, dict):
        return str(level.get("kind", _in_full(level)))
    return level if isinstance(level, str) else json.dumps(level, default=str)


def _in_full(level: Table) -> str:
    fields = {key: value for key, value in level.items() if key != "kind"}
    text = json.dumps(fields, sort_keys=True, default=str)
    return f"{level['kind']} {text}" if "kind" in level else text


def _combinations(axes: Axes, combine: Combine) -> Iterator[Table]:
    match combine if axes else "product":
        case "product":
            for levels in itertools.product(*axes.values()):
                yield dict(zip(axes, levels, strict=True))
        case "zip":
            for levels in zip(*axes.values(), strict=True):
                yield dict(zip(axes, levels, strict=True))
        case "one_at_a_time":
            centre = {name: levels[0] for name, levels in axes.items()}
            yield centre
            for name, levels in axes.items():
                for level in levels[1:]:
                    yield {**centre, name: level}


def _matches(cell: Mapping[str, Any], rule: Table) -> bool:
    return all(
        cell[path] in wanted if isinstance(wanted, list) else cell[path] == wanted for path, wanted in rule.items()
    )
