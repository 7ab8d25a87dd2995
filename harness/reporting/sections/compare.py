"""Runs side by side, from any ablation: differences between their specs, and their metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.base.errors import SpecError
from harness.config.experiment import flatten
from harness.reporting.collect.results import TRAINING, Measured, every_measurement
from harness.reporting.formats.numbers import NOTHING, heading, minutes, plain, value
from harness.reporting.formats.table import Head, Table, TableCell, numbers, words
from harness.reporting.formats.terminal import plain_table
from harness.reporting.sections.tables import EMPTY
from harness.runs.record import Record

Everything = Mapping[str, Sequence[Measured]]
Compared = tuple[str, Record, Mapping[str, Any]]
"""A run's label, its record, and its resolved spec as in spec.json."""


def compare(runs: Sequence[Compared]) -> str:
    """Spec differences, metrics with standard errors, and cost of `runs`, one column per run.

    Raises:
        SpecError: two of them have the same name.
    """
    names = Counter(name for name, _, _ in runs)
    if twice := next((name for name, number in names.items() if number > 1), None):
        raise SpecError(f"two of the runs to compare are called {twice!r}", where="RUN", fix="name each run once")
    tables = [_spec_table(runs), _metrics_table(runs), _cost_table(runs)]
    return "\n\n".join(plain_table(table) for table in tables) + "\n"


def _spec_table(runs: Sequence[Compared]) -> Table:
    flat = [flatten(dict(spec)) for _, _, spec in runs]
    paths = sorted({path for one in flat for path in one})
    # compared as JSON: 1 and true are different settings, and lists are settings too
    texts = {path: [json.dumps(one.get(path), sort_keys=True) if path in one else "" for one in flat] for path in paths}
    rows = tuple(
        (TableCell(path), *(TableCell(text or NOTHING, muted=not text) for text in found))
        for path, found in texts.items()
        if len(set(found)) > 1
    )
    notes = () if rows else ("The specs are the same.",)
    return Table("specs", "Differences between the specs", _heads(runs, "field", numeric=False), rows, notes)


def _metrics_table(runs: Sequence[Compared]) -> Table:
    everything = [every_measurement(record) for _, record, _ in runs]
    measured = [_in_common(one, everything) for one in everything]
    names = dict.fromkeys(name for one in measured for name in one)
    rows, mixed = [], False
    for name in names:
        found = [one.get(name) for one in measured]
        identity = next(one.identity for one in found if one is not None)
        foreign = [one is not None and one.identity != identity for one in found]
        mixed |= any(foreign)
        plain_name = name.partition(" (")[0]
        entries = (_metric(plain_name, one, mark) for one, mark in zip(found, foreign, strict=True))
        rows.append((TableCell(heading(name)), *entries))
    notes = ["In brackets the standard error over evaluation samples. It says nothing about other seeds."]
    notes += ["† Measured under another protocol than the first run's: not comparable."] if mixed else []
    return Table("metrics", "Metrics", _heads(runs, "metric"), tuple(rows), tuple(notes))


def _in_common(own: Everything, everything: Sequence[Everything]) -> dict[str, Measured]:
    """Each measurement of a run by a name that tells it from its others.

    A run may have been measured in several ways on sets of one name. Where it was, a way that all runs share keeps the
    plain name, and each other is named with the id of its protocol.
    """
    found = {}
    for name, ways in own.items():
        shared = [one for one in ways if all(_has(other.get(name, ()), one) for other in everything)]
        usual = min(shared or ways, key=lambda one: one.identity or "")
        for one in ways:
            found[name if one is usual else f"{name} ({one.protocol_id})"] = one
    return found


def _has(ways: Sequence[Measured], wanted: Measured) -> bool:
    return any(one.identity == wanted.identity for one in ways)


def _metric(name: str, one: Measured | None, foreign: bool) -> TableCell:
    if one is None:
        return EMPTY
    text = plain(one.value) if name.startswith(f"{TRAINING}/") and heading(name) == name else value(name, one.value)
    error = f" ({value(name, one.standard_error)})" if one.standard_error is not None else ""
    return TableCell(f"{text}{error}{' †' if foreign else ''}")


def _cost_table(runs: Sequence[Compared]) -> Table:
    records = [record for _, record, _ in runs]
    lines = {
        "training": [minutes(one.cost.duration_s) for one in records],
        "images/s": [f"{one.cost.images_per_s:,.0f}" for one in records],
        "memory (GB)": [f"{one.cost.peak_memory_gb:.2f}" for one in records],
        "steps": [f"{one.steps:,}" for one in records],
        "samples seen": [f"{one.samples_seen:,}" for one in records],
        "data": [one.data.fingerprint for one in records],
        "device": [one.cost.device for one in records],
    }
    for package in dict.fromkeys(name for one in records for name in one.versions):
        lines[package] = [one.versions.get(package, NOTHING) for one in records]
    rows = tuple((TableCell(name), *map(TableCell, texts)) for name, texts in lines.items())
    return Table("cost", "Cost and provenance", _heads(runs, ""), rows)


def _heads(runs: Sequence[Compared], first: str, *, numeric: bool = True) -> tuple[Head, ...]:
    labels = [label for label, _, _ in runs]
    return (*words(first), *(numbers(*labels) if numeric else words(*labels)))
