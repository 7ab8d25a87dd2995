"""Controls: what mined positives do beyond as many positives drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.experiment import Experiment
from harness.planning.isolation import differing, is_under
from harness.reporting.collect.comparison import Column, difference_between
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import difference, points
from harness.reporting.formats.table import Head, Table, TableCell, numbers
from harness.reporting.sections.tables import EMPTY
from harness.runs.metrics import is_share


@dataclass(frozen=True)
class Control:
    """Three arms that differ in mining alone."""

    mined: str
    placebo: str
    without: str


def controls(results: Results) -> list[Control]:
    """Every placebo whose mined arm, and whose arm without mining, the ablation has."""
    arms = results.plan.experiments
    found = []
    for placebo, experiment in arms.items():
        if (matched := experiment.mining.control_of) is not None:
            alike = [arm for arm, other in arms.items() if arm != placebo and _differ_in_mining(experiment, other)]
            mined = [arm for arm in alike if arms[arm].mining == matched]
            without = [arm for arm in alike if not arms[arm].mining.mines]
            if mined and without:
                found.append(Control(mined[0], placebo, without[0]))
    return found


def controls_table(results: Results, column: Column) -> Table | None:
    """The effect of mining, that of its placebo, and their difference. None without placebos."""
    found = controls(results)
    if not found:
        return None
    rows = tuple(
        (
            TableCell(results.labels[one.mined]),
            _difference(column, one.mined, one.without),
            _difference(column, one.placebo, one.without),
            _difference(column, one.mined, one.placebo),
        )
        for one in found
    )
    unit = f" ({points(column.metric).strip()})" if is_share(column.metric) else ""
    heads = (Head("Mining", numeric=False), *numbers(f"effect{unit}", "placebo's effect", "effect − placebo's"))
    without = "; ".join(dict.fromkeys(results.labels[one.without] for one in found))
    note = (
        f"Effects are differences to the same arm without mining ({without}), with marginal 95 % intervals. A placebo "
        "draws as many positives per image at random: only what exceeds its effect is due to which positives are mined."
    )
    return Table("controls", f"Controls: {column.metric} against positives drawn at random", heads, rows, (note,))


def _differ_in_mining(one: Experiment, other: Experiment) -> bool:
    return all(is_under(path, "mining") for path in differing(one, other))


def _difference(column: Column, arm: str, than: str) -> TableCell:
    delta = difference_between(column, arm, than)
    if delta is None:
        return EMPTY
    excludes = delta.interval is not None and delta.interval.excludes_zero
    return TableCell(difference(column.metric, delta), best=excludes)
