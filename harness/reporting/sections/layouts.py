"""The paper's layouts: factors as rows and columns (Tables 4 to 6), many evaluation sets side by side (Tables 1, 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from harness.config.ablation import Reference
from harness.reporting.collect.comparison import Column, difference_between, shared_level
from harness.reporting.collect.design import ARMS, Design, factor_name
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import NOTHING, difference, heading, mean, signed, value
from harness.reporting.formats.table import Head, Table, TableCell, numbers
from harness.reporting.sections.tables import EMPTY, mean_entry, why_empty
from harness.runs.metrics import is_share
from harness.statistics import Difference, summarise

MOST_COLUMNS = 10
"""Largest number of levels in one table."""
MANY_METRICS = 4
"""From this number of shown metrics on, they get their own table."""
_AVERAGED = ("acc1", "mean_per_class_recall")
_LAST = ("imagenet1k", "mscoco_captions")
"""Sets that papers print after the others."""
_PRINTED = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "food101": "Food101",
    "pets": "Pets",
    "flowers": "Flowers",
    "sun397": "SUN397",
    "cars": "Cars",
    "dtd": "DTD",
    "caltech101": "Caltech101",
    "fgvc_aircraft": "Aircraft",
    "imagenet1k": "ImageNet",
    "flickr30k": "Flickr30k",
    "mscoco_captions": "COCO",
}
_DIRECTIONS = {"text_retrieval": "text", "image_retrieval": "image"}


def grid_table(results: Results, column: Column) -> Table | None:
    """One or two factors as rows and columns, with reported numbers below. None for other designs."""
    design = results.design
    if not design.is_product or not 1 <= len(design.factors) <= 2:
        return None
    rows, columns = _oriented(design)
    levels = design.factors[columns]
    if len(levels) > MOST_COLUMNS:
        return None
    grid = _Grid(results, column, design, rows, columns)
    heads = [Head(factor_name(rows) if rows else "", numeric=False)]
    heads += [Head(level, group=factor_name(columns)) for level in levels]
    caption = f"{heading(column.metric)} by {' and '.join(factor_name(one) for one in (rows, columns) if one)}"
    return Table(f"grid-{column.metric}", caption, tuple(heads), tuple(grid.rows()), tuple(grid.notes()))


def suite_table(results: Results, columns: Sequence[Column]) -> Table | None:
    """Many metrics side by side, ours and reported ones, with their average if no part of it is missing."""
    sets = {column.metric.partition("/")[0] for column in columns}
    if len(columns) < MANY_METRICS or len(sets) < 2 or not all(is_share(column.metric) for column in columns):
        return None
    ordered = sorted(columns, key=_place)
    averaged = all(column.metric.rpartition("/")[2] in _AVERAGED for column in ordered)
    heads = [Head("Arm", numeric=False), *(_head(column.metric) for column in ordered)]
    heads += numbers("average") if averaged else ()
    rows: list[tuple[TableCell, ...]] = []
    for arm, row, average in _ours(results, ordered):
        rows.append((TableCell(results.labels[arm]), *row, *([average] if averaged else [])))
        rows += _reported(results, ordered, arm, results.labels[arm], averaged)
    for name, one in results.plan.ablation.published.items():
        rows += _reported(results, ordered, name, one.label, averaged)
    notes = ["Mean over seeds, in %; the table of arms shows the spread." if averaged else "Mean over seeds, in %."]
    notes += ["The average is given only where every set was measured, under one protocol for all arms."] * averaged
    return Table("suite", "Evaluation sets side by side", tuple(heads), tuple(rows), tuple(notes))


class _Grid:
    """Arms by the levels of two factors. Without a row factor there is one row."""

    def __init__(self, results: Results, column: Column, design: Design, rows: str, columns: str) -> None:
        self._results, self._column, self._design = results, column, design
        self._rows, self._columns = rows, columns
        self._row_levels = design.factors[rows] if rows else ("",)
        self._references = {one.arm: one for one in results.plan.ablation.references if one.metric == column.metric}

    def rows(self) -> Iterator[tuple[TableCell, ...]]:
        for level in self._row_levels:
            arms = self._arms(level)
            yield (TableCell(level or "measured"), *(self._mean(arm) for arm in arms))
            if any(arm in self._references for arm in arms):
                yield (TableCell(f"{level}, reported ‡".removeprefix(", "), muted=True), *map(self._reported, arms))
        yield from self._differences()

    def notes(self) -> Iterator[str]:
        yield "Mean ± standard deviation over seeds. Bold: the best mean."
        if len(self._row_levels) == 2 or not self._rows:
            yield (
                "Differences over equal seeds; in brackets the marginal 95 % interval of each, in bold where it "
                "excludes zero."
            )
        if self._references:
            sources = dict.fromkeys(one.source for one in self._references.values())
            yield f"‡ {'; '.join(sources)}, under its own protocol: see the table of reported numbers."

    def _arms(self, row_level: str) -> list[str | None]:
        row = {self._rows: row_level} if self._rows else {}
        levels = self._design.factors[self._columns]
        return [self._design.arm_at({**row, self._columns: level}) for level in levels]

    def _mean(self, arm: str | None) -> TableCell:
        return EMPTY if arm is None else mean_entry(self._results, self._column, arm)

    def _reported(self, arm: str | None) -> TableCell:
        one = self._references.get(arm or "")
        return TableCell(value(one.metric, one.value), muted=True) if one else EMPTY

    def _differences(self) -> Iterator[tuple[TableCell, ...]]:
        """Second row minus first if there are two rows; level minus first level if there is one row."""
        if self._rows and len(self._row_levels) != 2:
            return
        if self._rows:
            pairs = list(zip(self._arms(self._row_levels[1]), self._arms(self._row_levels[0]), strict=True))
            name = f"{self._row_levels[1]} − {self._row_levels[0]}"
        else:
            arms = self._arms("")
            pairs = [(arm, arms[0]) for arm in arms]
            name = f"− {self._design.factors[self._columns][0]}"
        yield (TableCell(name), *(self._difference(*pair) for pair in pairs))
        reported = [self._reported_difference(*pair) for pair in pairs]
        if any(entry is not EMPTY for entry in reported):
            yield (TableCell(f"{name}, reported ‡", muted=True), *reported)

    def _difference(self, arm: str | None, than: str | None) -> TableCell:
        if arm is None or than is None or arm == than:
            return EMPTY
        delta = difference_between(self._column, arm, than)
        if delta is None:
            return EMPTY
        return TableCell(
            difference(self._column.metric, delta),
            best=_told_apart(delta) and not shared_level(self._column, arm, than),
        )

    def _reported_difference(self, arm: str | None, than: str | None) -> TableCell:
        ours, theirs = self._references.get(arm or ""), self._references.get(than or "")
        if ours is None or theirs is None or arm == than:
            return EMPTY
        return TableCell(signed(ours.metric, ours.value - theirs.value), muted=True)


def _told_apart(delta: Difference) -> bool:
    return delta.interval is not None and delta.interval.excludes_zero


def _oriented(design: Design) -> tuple[str, str]:
    """The row factor (empty if there is one factor) and the column factor, which has more levels."""
    names = list(design.factors)
    if len(names) == 1:
        return "", names[0]
    if ARMS in names:
        return ARMS, next(name for name in names if name != ARMS)
    first, second = names
    return (first, second) if len(design.factors[first]) <= len(design.factors[second]) else (second, first)


def _place(column: Column) -> tuple[int, bool, bool]:
    """Text retrieval before image retrieval, the sets that papers print last at the end, declared order within."""
    set_name, _, metric = column.metric.partition("/")
    directions = ["", *_DIRECTIONS]
    direction = next((found for found in _DIRECTIONS if metric.startswith(found)), "")
    return directions.index(direction), metric == "average", set_name.partition("@")[0] in _LAST


def _head(metric: str) -> Head:
    set_name, _, name = metric.partition("/")
    known, _, protocol = set_name.partition("@")
    printed = _PRINTED.get(known, known) + (f" ({protocol})" if protocol else "")
    for direction, short in _DIRECTIONS.items():
        if name.startswith(f"{direction}_recall@"):
            return Head(f"R@{name.rpartition('@')[2]}", group=f"{printed}, {short}")
    return Head(printed if name in _AVERAGED else f"{printed} {name}")


def _ours(results: Results, columns: Sequence[Column]) -> Iterator[tuple[str, list[TableCell], TableCell]]:
    """Each arm with its entries and its average, the best average in bold."""
    averages = {arm: _average(columns, arm) for arm in results.by_arm}
    means = {arm: fmean(found.values()) for arm, found in averages.items() if found}
    best = max((round(one, 3) for one in means.values()), default=None)
    for arm in results.by_arm:
        row = [_short_mean(results, column, arm) for column in columns]
        if arm not in means:
            yield arm, row, TableCell(NOTHING, muted=True)
            continue
        text = mean(columns[0].metric, summarise(list(averages[arm].values())))
        yield arm, row, TableCell(text, best=len(means) > 1 and round(means[arm], 3) == best)


def _average(columns: Sequence[Column], arm: str) -> Mapping[int, float]:
    """Averages by seed, for seeds that have every column under the column's protocol."""
    found = [column.arms[arm] for column in columns]
    if any(one.foreign or not one.values for one in found):
        return {}
    seeds = set.intersection(*(set(one.values) for one in found))
    return {seed: fmean(one.values[seed] for one in found) for seed in sorted(seeds)}


def _short_mean(results: Results, column: Column, arm: str) -> TableCell:
    one = column.arms[arm]
    if one.summary is None:
        return TableCell(why_empty(results, arm), muted=True)
    text = value(column.metric, one.summary.mean) + (" †" if one.foreign else "")
    return TableCell(text, best=arm in column.best and len(column.comparable) > 1)


def _reported(
    results: Results, columns: Sequence[Column], arm: str, label: str, averaged: bool
) -> Iterator[tuple[TableCell, ...]]:
    references: dict[str, Reference] = {one.metric: one for one in results.plan.ablation.references if one.arm == arm}
    found = [references.get(column.metric) for column in columns]
    known = [one for one in found if one is not None]
    if not known:
        return
    row = [TableCell(value(one.metric, one.value), muted=True) if one else EMPTY for one in found]
    if averaged and len(known) == len(found):
        row.append(TableCell(value(known[0].metric, fmean(one.value for one in known)), muted=True))
    elif averaged:
        row.append(EMPTY)
    yield (TableCell(f"{label}, reported", muted=True), *row)
