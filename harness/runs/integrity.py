"""Whether a finished run's folder holds that run, with values that are possible, as it was when the run ended.

A record seals the run's files by their SHA-256, and itself by that of its canonical JSON. Records of earlier versions
have no seal: their values are checked, changes that keep them possible are not seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.duration import Duration
from harness.base.errors import StoreError
from harness.base.files import file_sha256
from harness.runs.identity import digest
from harness.runs.metrics import is_share
from harness.runs.record import EvaluationResult, Record

SEALED = ("spec.json", "metrics.jsonl", "spikes.jsonl", "weights.pt")
OUTCOMES = "outcomes"
"""Files that a seal covers, besides those of this folder."""
_HEX = 64
_ROUNDING = 1e-9


def file_digest(file: Path) -> str | None:
    """The SHA-256 of a file's contents; None if it cannot be read."""
    try:
        return file_sha256(file)
    except OSError:
        return None


def sealed(record: Record, folder: Path) -> dict[str, Any]:
    """The contents of record.json: `record` with a seal of the run's files.

    Files that were sealed before keep their digest, so that sealing again does not hide a change.
    """
    table: dict[str, Any] = record.model_dump(mode="json")
    before = {} if record.seal is None else record.seal.files
    new = {
        name: found for name in _covered(folder) - before.keys() if (found := file_digest(folder / name)) is not None
    }
    table["seal"] = {"files": {**before, **new}}
    table["seal"]["record"] = record_digest(table)
    return table


def record_digest(table: Mapping[str, Any]) -> str:
    """The SHA-256 of the canonical JSON of a record's `table`, without the digest that its seal states."""
    seal = {name: part for name, part in table["seal"].items() if name != "record"}
    return digest({**table, "seal": seal}, _HEX)


def changed_files(record: Record, folder: Path, names: tuple[str, ...] = ("metrics.jsonl", "outcomes/")) -> list[str]:
    """Files that a seal covers, among those whose names begin with one of `names`, that were changed, lost or added."""
    if record.seal is None:
        return []
    files = {**dict.fromkeys(_covered(folder), ""), **record.seal.files}
    return [
        name
        for name, stated in sorted(files.items())
        if name.startswith(names) and file_digest(folder / name) != stated
    ]


def _covered(folder: Path) -> set[str]:
    """The files of a run that a seal covers. Called for thousands of runs, so it lists the folders only."""
    found = set(SEALED).intersection(os.listdir(folder))
    with suppress(FileNotFoundError, NotADirectoryError):
        found |= {f"{OUTCOMES}/{name}" for name in os.listdir(folder / OUTCOMES) if name.endswith(".parquet")}
    return found


def require_unchanged(record: Record, file: Path) -> None:
    """Raise StoreError if a `file` of the run's folder differs from what it was when the run ended."""
    stated = None if record.seal is None else record.seal.files.get(file.name)
    if stated is not None and file_digest(file) != stated:
        what = "is damaged: it was changed since its run ended"
        raise StoreError(what, where=str(file), fix="restore it, or move its folder away to run again")


def check_record(record: Record, table: Mapping[str, Any], spec: Mapping[str, Any], newest: int, file: Path) -> None:
    """Check that a record is of the run with this frozen spec, and that its values are possible.

    Args:
        table: the contents of record.json.
        spec: the contents of spec.json.
        newest: number of the run's newest attempt; 0 if its attempts are not known.

    Raises:
        StoreError: the record is another run's, or damaged.
    """
    if record.run_id != spec["id"]:
        raise StoreError(f"is another run's: it is the record of run {record.run_id}", where=str(file), fix=_FIX)
    if record.seal is not None and record_digest(table) != record.seal.record:
        raise _damaged("it was changed after it was written", file)
    for problem in (*_amounts(record, spec, newest), *_evaluations(record)):
        raise _damaged(problem, file)


_FIX = "restore it, or move it away to run again"


def _damaged(what: str, file: Path) -> StoreError:
    return StoreError(f"is damaged: {what}", where=str(file), fix=_FIX)


def _amounts(record: Record, spec: Mapping[str, Any], newest: int) -> Iterator[str]:
    """Disagreements between what was trained and what the frozen spec asks for."""
    train = spec["resolved"]["train"]
    samples, batch = record.data.samples, int(train["global_batch_size"])
    steps = Duration.parse(train["duration"]).steps(samples_per_epoch=samples, global_batch_size=batch)
    if record.steps != steps:
        yield f"it has {record.steps:,} steps, its spec makes {steps:,}"
    if record.samples_seen != steps * batch:
        yield f"it has {record.samples_seen:,} samples_seen, its spec makes {steps * batch:,}"
    if not math.isclose(record.epochs * max(samples // batch, 1), steps, rel_tol=1e-6):
        yield f"{steps:,} steps are not {record.epochs:g} epochs of {samples:,} samples"
    if record.data.fingerprint != spec["identity"]["data"]["fingerprint"]:
        yield "its data is not that of its spec"
    if not 1 <= record.attempts <= (newest or record.attempts):
        yield f"attempt {record.attempts} wrote it, and there were {newest}"


def _evaluations(record: Record) -> Iterator[str]:
    """Values that no evaluation gives, and metrics that were measured once and have two values."""
    known: dict[tuple[str, ...], float] = {}
    for one in record.evaluations:
        for name, metric in one.metrics.items():
            where = f"{one.set}/{name}"
            if is_share(name) and not -_ROUNDING <= metric.value <= 1 + _ROUNDING:
                yield f"{where} is {metric.value:g}, not a share between 0 and 1"
            if metric.samples < 1 or (metric.standard_error or 0) < 0:
                yield f"{where} has {metric.samples} samples and a standard error of {metric.standard_error}"
            if known.setdefault(_key(one, name), metric.value) != metric.value:
                yield f"{where} has two values under one protocol"


def _key(one: EvaluationResult, name: str) -> tuple[str, ...]:
    return (one.set, one.protocol_id, name, repr(one.protocol.get("metrics")))
