"""Reports for programs: CSV with one line per run and metric, JSON with the contents of all other formats."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict
from io import StringIO
from typing import Any

from pydantic_core import to_json

from harness.reporting.collect.comparison import ArmValue, Column, difference_between
from harness.reporting.collect.results import Results, RunResult
from harness.reporting.formats.numbers import clean
from harness.reporting.sections.controls import Control, controls
from harness.reporting.sections.document import Document
from harness.statistics import SampleError

REPORT_VERSION = 2
HEADS = (
    "arm",
    "label",
    "seed",
    "run_id",
    "state",
    "metric",
    "value",
    "standard_error",
    "samples",
    "protocol_id",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(results: Results) -> str:
    """One line per run and metric, with values as in the record. A run without a record has one line."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADS)
    for arm, label, seed, run, state, metric, *values in rows(results):
        writer.writerow([_cell(arm), _cell(label), seed, run, state, _cell(metric or ""), *values])
    return out.getvalue()


def rows(results: Results) -> Iterator[tuple[Any, ...]]:
    """The values of `HEADS` for each run and metric, as in the record; one row for a run without results."""
    for run in results.runs:
        first = (run.arm, results.labels[run.arm], run.seed, run.folder.id, run.cause or "done")
        for metric, one in run.measured.items():
            yield (*first, metric, one.value, one.standard_error, one.samples, one.protocol_id)
        if not run.measured:
            yield (*first, None, None, None, None, None)


def as_json(document: Document) -> str:
    """The report as one JSON object. Numbers are not rounded and keep their scale (shares from 0 to 1)."""
    results, ablation = document.results, document.ablation
    data = {
        "version": REPORT_VERSION,
        "name": results.plan.name,
        "question": ablation.question,
        "answer": asdict(document.answer),
        "baseline": ablation.baseline,
        "primary": ablation.primary,
        "estimation": ablation.estimation,
        "margin": ablation.margin,
        "flags": [asdict(flag) for flag in document.flags],
        "arms": [_arm(document, arm) for arm in results.by_arm],
        "metrics": [_column(document.column(metric)) for metric in document.metrics],
        "claims": [
            one.claim.model_dump(mode="json")
            | {"metric": one.metric, "verdict": one.word, "said": one.text}
            | {"about": one.subject, "differs_in": one.isolation.fields, "differs_besides": one.isolation.besides}
            | {"margin": one.margin, "p": one.p, "equality_p": one.equality_p}
            | {"difference": asdict(one.difference) if one.difference else None}
            for one in document.verdicts
        ],
        "errors": [_errors(document, arm, error) for arm, error in document.sample_errors.items() if error],
        "looks": [one.model_dump(mode="json") for one in results.plan.looks],
        "controls": [_control(document.primary, one) for one in controls(results)],
        "references": [one.model_dump(mode="json") for one in ablation.references],
        "published": {name: one.model_dump(mode="json") for name, one in ablation.published.items()},
        "runs": [_run(run) for run in (*results.teachers, *results.runs)],
        "data": {key: report.model_dump(mode="json") for key, report in results.plan.data.items()},
        "protocols": {key: {"set": name, "protocol": one} for key, (name, one) in results.protocols.items()},
    }
    return to_json(data, indent=1).decode() + "\n"


def _control(column: Column, one: Control) -> dict[str, Any]:
    pairs = {"effect": (one.mined, one.without), "placebos_effect": (one.placebo, one.without)}
    pairs["difference"] = (one.mined, one.placebo)
    found = {name: difference_between(column, *pair) for name, pair in pairs.items()}
    return asdict(one) | {name: asdict(delta) if delta else None for name, delta in found.items()}


def _errors(document: Document, arm: str, error: SampleError) -> dict[str, Any]:
    delta = document.primary.arms[arm].difference
    assert delta is not None
    both = error.both(delta)
    return {
        "arm": arm,
        "samples": error.samples,
        "another_training": asdict(delta.interval) if delta.interval else None,
        "another_test_set": asdict(error.interval),
        "both": asdict(both) if both else None,
        "standard_error_test_set": error.error,
    }


def _arm(document: Document, arm: str) -> dict[str, Any]:
    changes = document.differences.get(arm, {})
    return {
        "name": arm,
        "label": document.results.labels[arm],
        "differs_in": document.results.fields[arm],
        "changes": {path: {"baseline": before, "arm": after} for path, (before, after) in changes.items()},
        "best": arm in document.primary.best,
    }


def _column(column: Column) -> dict[str, Any]:
    arms = [_arm_value(one) for one in column.arms.values() if one.summary is not None]
    return {"metric": column.metric, "protocol_id": column.protocol_id, "metric_id": column.identity, "arms": arms}


def _arm_value(one: ArmValue) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "values": {str(seed): number for seed, number in one.values.items()},
        "protocol_id": one.protocol_id,
        "metric_id": one.identity,
        "other_protocol": one.foreign,
        "standard_error": one.standard_error,
        "samples": one.samples,
        "summary": asdict(one.summary) if one.summary else None,
        "difference": asdict(one.difference) if one.difference else None,
        "holm_p": one.holm_p,
        "simultaneous": asdict(one.simultaneous) if one.simultaneous else None,
        "chance": one.chance,
        "level": one.level or None,
    }


def _run(run: RunResult) -> dict[str, Any]:
    record = run.record
    parts = {"evaluations", "cost", "final", "data", "versions", "steps", "samples_seen", "epochs", "attempts"}
    return {
        "arm": run.arm or None,
        "seed": run.seed,
        "id": run.folder.id,
        "state": str(run.state),
        "cause": run.cause or None,
        "message": run.message or None,
        "planned_steps": run.planned.steps,
        "record": _without_protocols(record.model_dump(mode="json", include=parts)) if record else None,
    }


def _without_protocols(record: dict[str, Any]) -> dict[str, Any]:
    evaluations = [{key: part for key, part in one.items() if key != "protocol"} for one in record["evaluations"]]
    return record | {"evaluations": evaluations}


def _cell(text: str) -> str:
    text = clean(text)
    # a spreadsheet would execute it
    return f"'{text}" if text.startswith(_FORMULA) else text
