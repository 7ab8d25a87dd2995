"""Arms at an equal budget of samples, steps or cost, read from the learning curves.

A run is evaluated at its end, and with `evaluation.every` also during training. Between two evaluations the curve is
interpolated linearly, and time is assumed to be spread evenly over steps. A run longer than the budget is read where it
had used the budget; its schedule was still that of the longer run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from harness.reporting.collect.comparison import Column
from harness.reporting.collect.results import Results, RunResult
from harness.reporting.formats.numbers import NOTHING, difference, heading, mean, minutes, points
from harness.reporting.formats.table import Head, Table, TableCell
from harness.runs.metrics import is_share
from harness.runs.record import Record
from harness.statistics import paired_difference, summarise

TOLERANCE = 0.01
"""Arms whose amounts differ by less than this share count as equal."""


@dataclass(frozen=True)
class EqualBudget:
    """A quantity that a run uses at a constant rate during training."""

    name: str
    of: Callable[[Record], float]
    shown: Callable[[float], str]


BUDGETS = (
    EqualBudget("samples", lambda record: record.samples_seen, lambda amount: f"{amount:,.0f} samples"),
    EqualBudget("steps", lambda record: record.steps, lambda amount: f"{amount:,.0f} steps"),
    EqualBudget(
        "cost",
        lambda record: record.cost.duration_s * record.cost.devices,
        lambda amount: f"{minutes(amount)} of device time",
    ),
)


def budget_table(results: Results, column: Column) -> Table | None:
    """The metric at each budget in which arms differ. None if no arm has a value before its end."""
    values = {arm.arm: dict(arm.values) for arm in column.comparable}
    runs = {arm: [run for run in results.by_arm[arm] if run.seed in seeds] for arm, seeds in values.items()}
    curves = {run.folder.id: _curve(run, column.metric) for found in runs.values() for run in found}
    if len(values) < 2 or not any(len(curve) > 1 for curve in curves.values()):
        return None
    unequal = [(budget, amount) for budget in BUDGETS if (amount := _least(runs, budget)) is not None]
    if not unequal:
        return None
    heads, rows = [Head("Arm", numeric=False)], {arm: [TableCell(results.labels[arm])] for arm in results.by_arm}
    for budget, amount in unequal:
        heads += _heads(column, budget.shown(amount))
        read = {arm: _read(found, budget, amount, curves) for arm, found in runs.items()}
        for arm, row in rows.items():
            row += _entries(column, read, arm, results.plan.ablation.baseline)
    caption = f"{heading(column.metric)} at equal budgets, from the learning curves"
    return Table("budgets", caption, tuple(heads), tuple(map(tuple, rows.values())), tuple(_notes(runs)))


def at(curve: Mapping[float, float], share: float) -> float | None:
    """The value of a curve (value by share of the run, 0 to 1) at `share`; None before its first point."""
    shares = sorted(curve)
    if not shares or share < shares[0] - 1e-9:
        return None
    return float(np.interp(share, shares, [curve[one] for one in shares]))


def _curve(run: RunResult, metric: str) -> dict[float, float]:
    """Values by the share of the run's steps; the last value comes from the record."""
    assert run.record is not None
    steps = max(run.record.steps, 1)
    lines = run.lines() if run.planned.experiment.evaluation.every is not None else []
    found = {line.step / steps: line.values[metric] for line in lines if metric in line.values and line.step < steps}
    return {**found, 1.0: run.measured[metric].value}


def _least(runs: Mapping[str, list[RunResult]], budget: EqualBudget) -> float | None:
    """The amount that every run has used. None if all have used the same amount."""
    amounts = [budget.of(run.record) for found in runs.values() for run in found if run.record]
    least, most = min(amounts), max(amounts)
    return least if most > least * (1 + TOLERANCE) else None


def _read(
    runs: list[RunResult], budget: EqualBudget, amount: float, curves: Mapping[str, Mapping[float, float]]
) -> dict[int, float]:
    """Values at the budget, by seed."""
    found = {}
    for run in runs:
        assert run.record is not None
        value = at(curves[run.folder.id], min(1.0, amount / budget.of(run.record)))
        if value is not None:
            found[run.seed] = value
    return found


def _heads(column: Column, group: str) -> list[Head]:
    unit = f" ({points(column.metric).strip()})" if is_share(column.metric) else ""
    return [Head(heading(column.metric), group=group), Head(f"Δ to baseline{unit}", group=group)]


def _entries(column: Column, read: Mapping[str, Mapping[int, float]], arm: str, baseline: str) -> list[TableCell]:
    values = read.get(arm)
    if not values:
        return [TableCell(NOTHING, muted=True), TableCell(NOTHING, muted=True)]
    level = TableCell(mean(column.metric, summarise(list(values.values()))))
    delta = None if arm == baseline else paired_difference(values, read.get(baseline, {}))
    if delta is None:
        return [level, TableCell("baseline" if arm == baseline else NOTHING, muted=True)]
    shown = delta.interval is not None and delta.interval.excludes_zero
    return [level, TableCell(difference(column.metric, delta), best=shown)]


def _notes(runs: Mapping[str, list[RunResult]]) -> Iterator[str]:
    yield (
        "Each run is read where it had used what the cheapest run used in all: straight between two measurements, time "
        "spread evenly over steps. A longer run is read within its own schedule, its learning rate not yet come down."
    )
    yield "Differences pair the runs of equal seed; in brackets the 95 % t-interval of each alone."
    equal = [budget.name for budget in BUDGETS if budget.name != "cost" and _least(runs, budget) is None]
    if equal:
        yield f"All arms have the same number of {' and '.join(equal)}: for these, the table of arms is the comparison."
