"""Which factor matters: main effects and two-way interactions of an ablation's axes, with the seeds as blocks."""

from __future__ import annotations

from dataclasses import dataclass

from harness.reporting.collect.comparison import Column
from harness.reporting.collect.design import Design, factor_name
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import NOTHING, difference, p_value, points
from harness.reporting.formats.table import Head, Table, TableCell, numbers
from harness.runs.metrics import is_share
from harness.statistics import CONFIDENCE, Cell, Difference, Effect, effects, holm, level_means, paired_difference

MOST_LEVELS = 120
"""Largest number of terms. A larger design is a search and gets no table of effects."""


@dataclass(frozen=True)
class FactorEffect:
    """A main effect or an interaction, with its size."""

    effect: Effect
    holm_p: float | None
    """Holm's p-value, corrected for the number of effects."""
    contrast: tuple[str, Difference] | None
    """The comparison in words, and its paired difference over seeds."""

    @property
    def name(self) -> str:
        """`captions.count`, or `mining x captions.count`."""
        return " × ".join(map(factor_name, self.effect.factors))

    @property
    def is_shown(self) -> bool:
        """Whether the effect is significant after Holm's correction."""
        return self.holm_p is not None and self.holm_p < 1 - CONFIDENCE


def factor_effects(results: Results, column: Column) -> list[FactorEffect]:
    """Effects of the axes on a metric: main effects, then interactions, each with the largest share first."""
    design = results.design
    if sum(map(len, design.factors.values())) > MOST_LEVELS or not design.factors:
        return []
    cells = [
        Cell(design.places[arm.arm], seed, value)
        for arm in column.comparable
        if arm.arm in design.places
        for seed, value in arm.values.items()
    ]
    found = effects(cells)
    found.sort(key=lambda effect: (len(effect.factors), -effect.share))
    corrected = holm([effect.p for effect in found])
    return [
        FactorEffect(effect, p, _contrast(cells, design, effect, column))
        for effect, p in zip(found, corrected, strict=True)
    ]


def effects_table(column: Column, found: list[FactorEffect]) -> Table | None:
    """The effects on the primary metric. None if there are fewer than two factors."""
    if len({name for one in found for name in one.effect.factors}) < 2:
        return None
    unit = f" ({points(column.metric).strip()})" if is_share(column.metric) else ""
    heads = (
        Head("Factor", numeric=False),
        *numbers("share of variation", "df", "p (Holm)"),
        Head("Compared", numeric=False),
        Head(f"difference{unit} [95 % interval]"),
    )
    rows = tuple(
        (
            TableCell(one.name),
            TableCell(f"{100 * one.effect.share:.0f} %"),
            TableCell(str(one.effect.df)),
            TableCell(p_value(one.holm_p), best=one.is_shown, muted=one.holm_p is None),
            TableCell(one.contrast[0] if one.contrast else NOTHING, muted=one.contrast is None),
            TableCell(difference(column.metric, one.contrast[1])) if one.contrast else TableCell(NOTHING, muted=True),
        )
        for one in found
    )
    caption = f"Which factor matters: effects on {column.metric} and how factors act on each other"
    seeds = max((len(arm.values) for arm in column.comparable), default=0)
    notes = [
        "Analysis of variance with the seeds as blocks (type II sums of squares): the part of the variation among all "
        "runs that a factor explains, and whether that is more than chance (Holm's correction over the rows).",
        "A factor is compared by its mean over the settings of the others, best level against worst; A × B by how much "
        "the effect of one changes between the ends of the other. Pairs are runs of one seed.",
    ]
    notes += ["One seed: nothing is tested."] if seeds == 1 else []
    return Table("effects", caption, heads, rows, tuple(notes))


def effects_sentence(column: Column, found: list[FactorEffect]) -> str:
    """Sentence on which factor matters most, and whether factors interact; empty if there is nothing to compare."""
    mains = [one for one in found if len(one.effect.factors) == 1 and one.is_shown]
    if len({name for one in found for name in one.effect.factors}) < 2 or not mains:
        return ""
    top = mains[0]
    said = f"The factor {top.name} matters most ({100 * top.effect.share:.0f} % of the variation among runs)"
    others = [f"{one.name} {100 * one.effect.share:.0f} %" for one in mains[1:]]
    said += f", then {', '.join(others)}" if others else ""
    between = [one for one in found if len(one.effect.factors) == 2 and one.is_shown]
    if not between:
        return f"{said}; no factor is shown to change another's effect."
    acting = between[0]
    one, other = map(factor_name, acting.effect.factors)
    how = f": {difference(column.metric, acting.contrast[1])} for {acting.contrast[0]}" if acting.contrast else ""
    return f"{said}; the effect of {one} depends on {other}{how}."


def _contrast(cells: list[Cell], design: Design, effect: Effect, column: Column) -> tuple[str, Difference] | None:
    if len(effect.factors) == 1:
        return _main(cells, effect.factors[0], column)
    return _interaction(cells, design, *effect.factors)


def _main(cells: list[Cell], factor: str, column: Column) -> tuple[str, Difference] | None:
    means = {level: seeds for level, seeds in level_means(cells, factor).items() if seeds}
    if len(means) < 2:
        return None
    ranked = sorted(means, key=lambda level: sum(means[level].values()) / len(means[level]))
    worst, best = (ranked[0], ranked[-1]) if column.higher_is_better else (ranked[-1], ranked[0])
    delta = paired_difference(means[best], means[worst])
    return (f"{best} − {worst}", delta) if delta else None


def _interaction(cells: list[Cell], design: Design, one: str, other: str) -> tuple[str, Difference] | None:
    """How much the effect of `one` (last level against first) changes from the first to the last level of `other`."""
    first, last = design.factors[one][0], design.factors[one][-1]
    start, end = design.factors[other][0], design.factors[other][-1]
    changes = []
    for level in (end, start):
        here = [cell for cell in cells if cell.levels[other] == level and cell.levels[one] in (first, last)]
        means = level_means(here, one)
        ours, theirs = means.get(last, {}), means.get(first, {})
        changes.append({seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()})
    delta = paired_difference(*changes)
    text = f"({last} − {first}) at {factor_name(other)} {end} against {start}"
    return (text, delta) if delta else None
