"""The tables behind the answer: what arms change, all metrics, training, cost, failures and provenance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from harness.reporting.collect.comparison import Column
from harness.reporting.collect.pareto import COMPUTE, HOURS, offers
from harness.reporting.collect.results import Results, RunResult
from harness.reporting.formats.numbers import NOTHING, clean, count, heading, mean, minutes, plain, value
from harness.reporting.formats.table import Head, Table, TableCell, numbers, words
from harness.reporting.sections.fairness import Differences
from harness.reporting.sections.tables import EMPTY, why_empty
from harness.runs.record import DataReport, Record

SHORT = 12
"""Printed digits of a fingerprint; the JSON has all digits."""
ONE_SIDED = 6
"""Largest number of fields of a section, present in only one of two arms, that are listed one by one."""


def changes_table(results: Results, differences: Differences) -> Table | None:
    """The changes of each arm relative to the baseline."""
    if not differences:
        return None
    rows = tuple(
        (TableCell(results.labels[arm]), TableCell(section), TableCell(change))
        for arm, found in differences.items()
        for section, change in _changes(found)
    )
    baseline = results.labels[results.plan.ablation.baseline]
    heads = words("Arm", "Part", "Fields: baseline → arm")
    return Table("changes", f"What each arm changes in {baseline}: every field that can change a result", heads, rows)


def set_table(results: Results, set_name: str, columns: Sequence[Column]) -> Table:
    """All metrics of one evaluation set: mean and spread over seeds, and the standard error over samples."""
    rows = []
    protocols = {arm: columns[0].arms[arm].protocol_id for arm in results.by_arm}
    mixed = len({one for one in protocols.values() if one}) > 1
    for arm, protocol in protocols.items():
        entries = [_detail_entry(results, column, arm) for column in columns]
        last = [TableCell(protocol) if protocol else EMPTY] if mixed else []
        rows.append((TableCell(results.labels[arm]), *entries, *last))
    samples = sorted({arm.samples for column in columns for arm in column.arms.values() if arm.samples is not None})
    caption = f"{set_name}: every metric"
    heads = (Head("Arm", numeric=False), *numbers(*(_short(column.metric) for column in columns)))
    heads += words("protocol") if mixed else ()
    measured_on = f", of {' or '.join(f'{n:,}' for n in samples)}" if samples else ""
    note = f"Mean ± standard deviation over seeds; in brackets the standard error over evaluation samples{measured_on}."
    note += "" if mixed else f" Protocol {columns[0].protocol_id}."
    return Table(f"set-{set_name}", caption, heads, tuple(rows), (note,))


def training_table(results: Results, columns: Sequence[Column]) -> Table | None:
    """The last values of the training metrics.

    Args:
        columns: of `train/NAME` for each.
    """
    if not columns:
        return None
    rows = [
        (TableCell(results.labels[arm]), *(_plain_mean(results, column, arm) for column in columns))
        for arm in results.by_arm
    ]
    heads = (Head("Arm", numeric=False), *numbers(*(_short(column.metric) for column in columns)))
    note = "Mean ± standard deviation over seeds of the last logged values."
    notes = (note, f"{note} Losses of different objectives are on different scales: compare arms by a metric.")
    kinds = {arm.experiment.loss.label for arm in results.plan.arms}
    return Table("training", "Training at its end", heads, tuple(rows), (notes[len(kinds) > 1],))


def cost_table(results: Results, column: Column) -> Table | None:
    """Cost of each arm's runs, and the arms on the Pareto front."""
    records = {arm: [run.record for run in runs if run.record] for arm, runs in results.by_arm.items()}
    if not results.done:
        return None
    base, unit = records[results.plan.ablation.baseline], _compute_unit(records)
    front = {offer.arm for offer in offers(results, column, HOURS) if offer.on_front}
    rows = tuple(
        (
            TableCell(results.labels[arm]),
            *_cost_entries(found, base, unit[0]),
            TableCell("yes" if arm in front else NOTHING),
        )
        for arm, found in records.items()
    )
    heads = numbers("training", "× baseline", "device-hours", unit[1], "evaluation", "images/s", "memory (GB)")
    heads += numbers("steps", "samples seen")
    total = sum(run.record.cost.duration_s + run.record.cost.evaluation_s for run in results.done if run.record)
    notes = (
        f"Time of a run, mean over seeds; all {count(len(results.done), 'run')} together took {minutes(total)}. "
        f"On the front: no other arm is at least as good in {column.metric} for fewer device-hours.",
    )
    return Table("cost", "Cost", (Head("Arm", numeric=False), *heads, *words("device", "on the front")), rows, notes)


def failures_table(results: Results) -> Table | None:
    """Runs without a record, with the cause, the message, and where to look."""
    rows = tuple(
        (
            TableCell(results.labels.get(run.arm, "teacher")),
            TableCell(str(run.seed)),
            TableCell(run.folder.id),
            TableCell(run.cause),
            TableCell(run.message or NOTHING),
        )
        for run in (*results.teachers, *results.runs)
        if run.record is None
    )
    heads = (*words("Arm"), *numbers("seed"), *words("Run", "State", "What it said"))
    note = "`harness logs RUN` shows a run's log; `harness run` does only what is missing."
    return Table("failures", "Runs without a result", heads, rows, (note,)) if rows else None


def runs_table(results: Results) -> Table | None:
    """Every finished run and the source of its numbers."""
    rows = tuple(_run_row(results, run) for run in (*results.teachers, *results.runs) if run.record)
    heads = (
        *words("Arm"),
        *numbers("seed"),
        *words("Run"),
        *numbers("steps", "epochs", "samples seen", "attempts"),
        *words("data", "teacher"),
    )
    return Table("runs", "Runs", heads, rows) if rows else None


def data_table(results: Results) -> Table:
    """The data sets, by fingerprint."""
    rows = tuple(
        (
            TableCell(fingerprint[:SHORT]),
            TableCell(f"{report.samples:,}"),
            TableCell(f"{sum(report.rejected.values()):,}"),
            TableCell(_left_out(report)),
        )
        for fingerprint, report in results.plan.data.items()
    )
    heads = (*words("Fingerprint"), *numbers("samples", "left out"), *words("why"))
    notes = tuple(
        f"{fingerprint[:SHORT]}: {clean(name)} has {100 * one.share:.2f} % of the images, from {one.samples:,} samples."
        for fingerprint, report in results.plan.data.items()
        for name, one in report.sources.items()
    )
    return Table("data", "Training data", heads, rows, notes)


def versions_table(results: Results) -> Table | None:
    """Software versions of the finished runs."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for run in results.done:
        for package, version in (run.record.versions if run.record else {}).items():
            found[package][version] += 1
    rows = tuple(
        (TableCell(clean(package)), TableCell(", ".join(clean(version) for version in versions)))
        for package, versions in found.items()
    )
    return Table("versions", "Versions", words("Package", "version"), rows) if rows else None


def protocol_texts(results: Results) -> list[tuple[str, str, str]]:
    """Each protocol as (id, evaluation set, JSON). Long lists are truncated and show their length."""
    return [
        (protocol_id, set_name, json.dumps(_shortened(protocol), indent=1, ensure_ascii=False))
        for protocol_id, (set_name, protocol) in results.protocols.items()
    ]


def _changes(found: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, str]]:
    """Each section that differs, and how; kinds come first. Many fields that only one side has are counted."""
    sections: dict[str, dict[str, tuple[Any, Any]]] = defaultdict(dict)
    for path, sides in found.items():
        section, _, field = path.partition(".")
        sections[section][field or section] = sides
    for section, fields in sections.items():
        absent = [all(sides[place] is None for sides in fields.values()) for place in (0, 1)]
        if any(absent) and len(fields) > ONE_SIDED:
            kinds = fields.get("kind", (None, None))
            before, after = (NOTHING if gone else kind or "given" for gone, kind in zip(absent, kinds, strict=True))
            yield section, f"{before} → {after} ({len(fields)} fields)"
        else:
            ordered = sorted(fields, key=lambda field: not field.endswith("kind"))
            yield (
                section,
                "; ".join(f"{name}: {_shown(fields[name][0])} → {_shown(fields[name][1])}" for name in ordered),
            )


def _shown(setting: Any) -> str:
    if setting is None:
        return NOTHING
    if isinstance(setting, float):
        return f"{setting:.6g}"
    text = setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)
    return clean(text if len(text) <= 60 else f"{text[:57]}...")


def _detail_entry(results: Results, column: Column, arm: str) -> TableCell:
    one = column.arms[arm]
    if one.summary is None:
        return TableCell(why_empty(results, arm), muted=True)
    error = f" ({value(column.metric, one.standard_error)})" if one.standard_error is not None else ""
    mark = " †" if one.foreign else ""
    return TableCell(f"{mean(column.metric, one.summary)}{error}{mark}", best=arm in column.best)


def _plain_mean(results: Results, column: Column, arm: str) -> TableCell:
    one = column.arms[arm]
    if one.summary is None:
        return TableCell(
            NOTHING if any(run.record for run in results.by_arm[arm]) else why_empty(results, arm), muted=True
        )
    return TableCell(mean(column.metric, one.summary))


def _cost_entries(records: list[Record], base: list[Record], flops: float) -> list[TableCell]:
    if not records:
        return [EMPTY] * 10
    duration = fmean(record.cost.duration_s for record in records)
    ratio = duration / fmean(record.cost.duration_s for record in base) if base else None
    return [
        TableCell(minutes(duration)),
        TableCell(f"{ratio:.2f}") if ratio is not None else EMPTY,
        TableCell(plain(fmean(record.cost.device_hours for record in records))),
        _compute(records, flops),
        TableCell(minutes(fmean(record.cost.evaluation_s for record in records))),
        TableCell(f"{fmean(record.cost.images_per_s for record in records):,.0f}"),
        TableCell(f"{max(record.cost.peak_memory_gb for record in records):.2f}"),
        TableCell(_all_of({record.steps for record in records})),
        TableCell(_all_of({record.samples_seen for record in records})),
        TableCell(", ".join(dict.fromkeys(clean(record.cost.device) for record in records))),
    ]


def _compute(records: list[Record], unit: float) -> TableCell:
    known = [record.cost.flops for record in records if record.cost.flops is not None]
    return TableCell(plain(fmean(known) / unit)) if len(known) == len(records) else EMPTY


def _compute_unit(records: Mapping[str, list[Record]]) -> tuple[float, str]:
    return COMPUTE.unit(record.cost.flops or 0.0 for found in records.values() for record in found)


def _run_row(results: Results, run: RunResult) -> tuple[TableCell, ...]:
    record = run.record
    assert record is not None
    return (
        TableCell(results.labels.get(run.arm, "teacher")),
        TableCell(str(run.seed)),
        TableCell(run.folder.id),
        TableCell(f"{record.steps:,}"),
        TableCell(f"{record.epochs:.2f}"),
        TableCell(f"{record.samples_seen:,}"),
        TableCell(str(record.attempts)),
        TableCell(clean(record.data.fingerprint[:SHORT])),
        TableCell(run.planned.teacher or NOTHING, muted=run.planned.teacher is None),
    )


def _left_out(report: DataReport) -> str:
    if report.missing:
        return f"not on this machine: {clean(report.missing)}"
    return ", ".join(f"{number:,} {clean(why)}" for why, number in report.rejected.items() if number) or NOTHING


def _all_of(found: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(found))


def _short(metric: str) -> str:
    return heading(metric).partition("/")[2]


def _shortened(data: Any, most: int = 12) -> Any:
    if isinstance(data, dict):
        return {key: _shortened(item, most) for key, item in data.items()}
    if isinstance(data, list) and len(data) > most:
        return [*(_shortened(item, most) for item in data[:most]), f"... {len(data)} in all"]
    return data
