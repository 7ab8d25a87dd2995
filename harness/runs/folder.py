"""A run's folder. Only this module knows the names of its files.

store/runs/<id>/
    spec.json        identity and resolved spec, written once
    request.json     how to execute it now: experiment with paths, evaluation, roots, device, threads
    progress.json    current step, steps, images/s, attempt, pid
    cancelled.json   when the user cancelled it; a command that began earlier leaves it alone
    pause.json       the step at which training pauses; a search writes it, the training loop reads it
    metrics.jsonl    one line every few steps
    spikes.jsonl     one line for each step with an outlying loss, with the step's samples
    checkpoint.pt    state from which to resume; earlier ones are checkpoint-<step>.pt, if several are kept
    weights.pt       the final model
    training.json    how the training ended, until the evaluation is done
    record.json      the result; if it exists, the run is done
    failure.json     why the last attempt did not complete
    gallery.json     a few images with the captions that mining assigned to them
    parts/           the user's own Python files that the run executes, in a folder for each content
    outcomes/        per-sample outcomes of evaluation sets
    log.txt          the worker's output
    attempts/        the process and the end of each attempt (see `harness.runs.attempts`)
    lock             held by the live attempt; contains its process id and host
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from harness.base.boundary import reading
from harness.base.errors import StoreError
from harness.base.files import (
    check_fences,
    fenced,
    read_bytes,
    read_ends,
    read_json,
    unwritable,
    write_json,
    write_text,
)
from harness.base.locks import Holder, exclusive, holder, is_held
from harness.runs.attempts import Attempts
from harness.runs.identity import Identity, check_same, digest
from harness.runs.integrity import check_record, require_unchanged, sealed
from harness.runs.record import RECORD_VERSION, Cost, Failure, Record, StepMetrics, TrainingEnd
from harness.runs.versions import check_version, unreadable

SPEC_VERSION = 1
CLAIM_WAIT_S = 1.0
"""How long a claim waits for the lock. A process that checks whether the lock is held takes it for an instant, and a
claim must not fail because of that."""
TAKEOVER_WAIT_S = 20.0
"""How long to wait for a superseded attempt to release the lock. After that, only the fencing token stops its
writes."""
_Part = TypeVar("_Part", Record, Failure, Cost, TrainingEnd)


class State(StrEnum):
    """The state of a run, derived from its folder."""

    MISSING = "missing"
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    FAILED = "failed"
    DONE = "done"


class _File:
    """A file or folder with this name in a run folder. Its path is built only when it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, folder: None, owner: type) -> _File: ...
    @overload
    def __get__(self, folder: RunFolder, owner: type) -> Path: ...
    def __get__(self, folder: RunFolder | None, owner: type) -> Path | _File:
        return self if folder is None else folder.path / self.name


class RunFolder:
    """One run's folder."""

    spec = _File("spec.json")
    request = _File("request.json")
    progress = _File("progress.json")
    cancelled = _File("cancelled.json")
    pause = _File("pause.json")
    metrics = _File("metrics.jsonl")
    checkpoint = _File("checkpoint.pt")
    weights = _File("weights.pt")
    training_file = _File("training.json")
    record_file = _File("record.json")
    failure_file = _File("failure.json")
    spikes = _File("spikes.jsonl")
    outcomes = _File("outcomes")
    parts = _File("parts")
    gallery = _File("gallery.json")
    log = _File("log.txt")
    lock = _File("lock")

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def attempts(self) -> Attempts:
        """The run's attempts."""
        return Attempts(self.path / "attempts")

    def state(self) -> State:
        """The run's state.

        Raises:
            StoreError: its folder cannot be read.
        """
        with reading(self.path):
            return self._state()

    def _state(self) -> State:
        if self.record_file.exists():
            return State.DONE
        if self.is_locked():
            return State.RUNNING
        if self.failure_file.exists():
            return State.INTERRUPTED if self.failure().cause == "interrupted" else State.FAILED
        return State.INTERRUPTED if self.progress.exists() else State.MISSING

    def delete(self) -> None:
        """Delete the run.

        Raises:
            StoreError: a live process works on it, or the folder cannot be changed.
        """
        with self._lock() as held:
            if not held:
                raise StoreError("another process works on this run", where=str(self.path), fix="wait for it")
            aside = self.path.parents[1] / f".deleted-{self.id}"  # not among the runs
            try:
                os.rename(self.path, aside)
                shutil.rmtree(aside)
            except OSError as error:
                raise unwritable(self.path, error) from error

    def prepare(self, identity: Identity, request: dict[str, Any]) -> None:
        """Make the folder ready for an attempt: freeze or compare the spec, and write the request.

        Deletes an earlier attempt's failure, which could be mistaken for the new attempt's, and earlier requests to
        pause or cancel.

        Raises:
            StoreError: the folder holds a run with this id but other defaults, or cannot be written.
        """
        if self.spec.exists():
            self.check(identity)
        else:
            frozen = {"version": SPEC_VERSION, "id": identity.id, "identity": identity.payload}
            write_json(self.spec, frozen | {"resolved": identity.resolved})
        write_json(self.request, request)
        self.failure_file.unlink(missing_ok=True)
        self.pause.unlink(missing_ok=True)
        self.cancelled.unlink(missing_ok=True)

    def check(self, identity: Identity) -> None:
        """Raise StoreError if the folder's spec differs from `identity`."""
        check_same(self.resolved(), identity, self.path)

    def resolved(self) -> dict[str, Any]:
        """The run's frozen spec, with every default written out.

        Raises:
            StoreError: spec.json is damaged or another run's, or a newer harness wrote it.
        """
        return _table(self._frozen()["resolved"], self.spec)

    def record(self, identity: Identity | None = None) -> Record:
        """The record of a finished run. Every reader gets it here, after checks that it is this run's and not damaged.

        Args:
            identity: the run as it is planned now; its defaults are compared with those of the run.

        Raises:
            StoreError: there is none, it is damaged or another run's, or was made with other defaults.
        """
        with reading(self.path):
            table = read_json(self.record_file)
            record, frozen = _parsed(Record, self.record_file, table), self._frozen()
            try:
                check_record(record, table, frozen, self.attempts.newest(), self.record_file)
            except (ArithmeticError, LookupError, TypeError, ValueError):
                raise _damaged(self.spec) from None
            require_unchanged(record, self.spec)
            if identity is not None:
                check_same(_table(frozen["resolved"], self.spec), identity, self.path)
            return record

    def check_weights(self) -> None:
        """Raise StoreError if the weights of a finished run were changed since it ended. Reads them."""
        if self.record_file.exists():
            require_unchanged(self.record(), self.weights)

    def _frozen(self) -> dict[str, Any]:
        """The contents of spec.json, which make the id of this folder."""
        table = _table(read_json(self.spec), self.spec)
        check_version(table, SPEC_VERSION, self.spec)
        if not {"id", "identity", "resolved"} <= table.keys():
            raise _damaged(self.spec)
        if (found := digest(table["identity"])) != self.id or table["id"] != self.id:
            what = f"is damaged or another run's: it makes run {found if found != self.id else table['id']}"
            raise StoreError(what, where=str(self.spec), fix="restore it, or move its folder away to run again")
        return table

    def failure(self) -> Failure:
        """Why the last attempt did not complete."""
        return _parsed(Failure, self.failure_file, read_json(self.failure_file))

    def note_training(self, end: TrainingEnd) -> None:
        """Write how the training ended, because another process may do the evaluation and write the record."""
        write_json(self.training_file, end.model_dump(mode="json"))

    def training(self) -> TrainingEnd | None:
        """How the training ended. It is available until the run has a record; None if an earlier version trained it.

        Raises:
            StoreError: it was not written, or is damaged.
        """
        table = read_json(self.training_file)
        return (
            None if isinstance(table, dict) and "cost" not in table else _parsed(TrainingEnd, self.training_file, table)
        )

    def training_cost(self) -> Cost:
        """The cost of a training by an earlier version, which wrote nothing else.

        Raises:
            StoreError: it was not written, or is damaged.
        """
        return _parsed(Cost, self.training_file, read_json(self.training_file))

    def is_trained(self) -> bool:
        """Whether only the evaluation is missing."""
        return self.weights.exists() and self.training_file.exists()

    def finish(self, record: Record) -> None:
        """Write the record with a seal of the run's files, in one atomic step. From then on the run is done."""
        write_json(self.record_file, sealed(record, self.path))
        self.training_file.unlink(missing_ok=True)
        self.failure_file.unlink(missing_ok=True)

    def fail(self, failure: Failure) -> None:
        """Write why an attempt ended early."""
        write_json(self.failure_file, failure.model_dump(mode="json"))

    def pause_at(self, step: int | None) -> None:
        """Ask the training loop to write a checkpoint and pause at `step`, or at once if it has passed that step.

        With None, training continues to the end.
        """
        if step is None:
            self.pause.unlink(missing_ok=True)
        else:
            write_json(self.pause, {"step": step})

    def cancel(self) -> None:
        """Record that the user cancelled the run. It is not executed until the user requests it again."""
        write_json(self.cancelled, {"at": time.time()})

    def cancelled_since(self, began_at: float) -> bool:
        """Whether the user has cancelled the run after a command began that was to execute it, at this Unix time."""
        try:
            return bool(read_json(self.cancelled)["at"] > began_at) if self.cancelled.exists() else False
        except (KeyError, TypeError):
            raise StoreError("is damaged", where=str(self.cancelled), fix="delete it") from None

    def pause_step(self) -> int | None:
        """The step at which training has to pause; None if there is no such limit."""
        try:
            return int(_table(read_json(self.pause), self.pause)["step"]) if self.pause.exists() else None
        except (KeyError, TypeError, ValueError):
            fix = "delete it, and the run continues"
            raise StoreError("is damaged", where=str(self.pause), fix=fix) from None

    def is_paused(self) -> bool:
        """Whether the run has reached the step at which it has to pause."""
        limit = self.pause_step()
        return limit is not None and not self.record_file.exists() and self.read_progress().get("step", -1) >= limit

    def step_metrics(self) -> list[StepMetrics]:
        """The lines of metrics.jsonl, with each step once, without those that are damaged (`damaged_lines`).

        A superseded attempt may have written a last line next to its successor's for the same step.
        """
        return [step for _, step in sorted({line.step: line for line in self._lines() if line is not None}.items())]

    def damaged_lines(self) -> list[int]:
        """Numbers of the lines of metrics.jsonl that are damaged, from 1; not a cut last one, which a kill leaves."""
        return [number for number, line in enumerate(self._lines(), 1) if line is None]

    def damaged_outcomes(self) -> list[str]:
        """Names of files of outcomes that are cut or no Parquet files, by their first and last bytes."""
        return [file.name for file in sorted(self.outcomes.glob("*.parquet")) if not _is_parquet(file)]

    def _lines(self) -> list[StepMetrics | None]:
        try:
            lines = read_bytes(self.metrics).splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot be read ({error.strerror})", where=str(self.metrics), fix="restore it") from error
        return [_line(line) for line in lines if line.endswith(b"\n")]

    def restore_metrics(self, step: int, log: str | None) -> str:
        """Bring metrics.jsonl and spikes.jsonl to where they were at `step`; returns the lines of metrics.jsonl.

        Args:
            log: the lines as the checkpoint has them; None if it has none, and the file is believed.
        """
        if log is None:
            kept = [line for line in self.step_metrics() if line.step <= step]
            log = "".join(f"{line.model_dump_json(exclude_defaults=True)}\n" for line in kept)
        if log or self.metrics.exists():
            write_text(self.metrics, log)
        if self.spikes.exists():
            lines = read_bytes(self.spikes).decode(errors="replace").splitlines()
            write_text(self.spikes, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        return log

    def append_metrics(self, step: int, values: Mapping[str, float], evaluated: Mapping[str, str] | None = None) -> str:
        """Append a line to metrics.jsonl, and return it.

        Args:
            evaluated: for each metric of an evaluation set among the values, a digest of what it depends on.

        Raises:
            StoreError: it cannot be written (full disk).
        """
        step_metrics = StepMetrics(step=step, time=time.time(), values=dict(values), evaluated=dict(evaluated or {}))
        line = f"{step_metrics.model_dump_json(exclude_defaults=True)}\n"
        self._append(self.metrics, line)
        return line

    def sync_metrics(self) -> None:
        """Wait until the lines of metrics.jsonl are on disk.

        Raises:
            StoreError: the disk is full.
        """
        try:
            if self.metrics.exists():
                with self.metrics.open("rb") as stream:
                    os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(self.metrics, error) from error

    def append_spike(self, spike: dict[str, Any]) -> None:
        """Append a line to spikes.jsonl.

        Raises:
            StoreError: it cannot be written (full disk).
        """
        self._append(self.spikes, f"{json.dumps(spike)}\n")

    def _append(self, file: Path, line: str) -> None:
        check_fences(file)
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise unwritable(file, error) from error

    @property
    def step(self) -> int:
        """The optimiser step that its progress states; 0 without any."""
        return int(self.read_progress().get("step", 0))

    def read_progress(self) -> dict[str, Any]:
        """The contents of progress.json; empty if the file does not exist.

        Raises:
            StoreError: it is damaged.
        """
        if not self.progress.exists():
            return {}
        table = _table(read_json(self.progress), self.progress)
        if not all(isinstance(value, int | float) for value in table.values()):
            raise StoreError("is damaged", where=str(self.progress), fix="delete it: it only shows the run's progress")
        return table

    def is_locked(self) -> bool:
        """Whether a live process is executing the run."""
        return is_held(self.lock)

    def holder(self) -> Holder | None:
        """The live process that is executing the run."""
        return holder(self.lock)

    @contextmanager
    def claimed(self, *, takeover: bool = False) -> Iterator[int]:
        """Lock the run for this process and begin an attempt, whose number is yielded. Older attempts are superseded.

        The kernel releases the lock when the process dies, in whatever way. The attempt's number is its fencing token:
        once a newer attempt has begun, every write of this one into the run's folder raises SupersededError.

        Args:
            takeover: a scheduler has assigned the run to this process, so an attempt that still holds it is superseded.

        Raises:
            StoreError: another live process holds the run, or its folder cannot be written.
        """
        with ExitStack() as stack:
            # A takeover takes its number before the lock: the old attempt then finds the higher number at its next
            # write, stops, and releases the lock. Otherwise the lock comes first, so that a claim that fails does
            # not supersede the attempt that holds it.
            number = self._begin_attempt() if takeover else 0
            held = self._acquire(stack, TAKEOVER_WAIT_S if takeover else CLAIM_WAIT_S)
            if not held and not takeover:
                raise StoreError("another process works on this run", where=str(self.path), fix="wait for it")
            number = number or self._begin_attempt()
            stack.enter_context(fenced(self.path, lambda: self.attempts.check(number)))
            if held:
                self._remove_partial_files()
            yield number

    def _begin_attempt(self) -> int:
        # In folders made before attempts were numbered, progress.json gives the number of attempts.
        return self.attempts.begin(int(self.read_progress().get("attempt", 0)) + 1)

    def _acquire(self, stack: ExitStack, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not (held := stack.enter_context(self._lock())) and time.monotonic() < until:
            time.sleep(0.02)
        return held

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        with ExitStack() as stack:
            try:
                held = stack.enter_context(exclusive(self.lock, wait=False))
            except OSError as error:
                raise unwritable(self.lock, error) from error
            yield held

    def _remove_partial_files(self) -> None:
        """Remove temporary files of a killed attempt. Only the attempt that holds the run writes these files."""
        for file in (self.progress, self.metrics, self.checkpoint, self.weights, self.record_file, self.failure_file):
            for aside in self.path.glob(f".{file.name}.*"):
                aside.unlink(missing_ok=True)


def _line(line: bytes) -> StepMetrics | None:
    try:
        return StepMetrics.model_validate_json(line)
    except ValidationError:
        return None


def _is_parquet(file: Path) -> bool:
    try:
        _, first, last = read_ends(str(file), 4, 4)
    except OSError:
        return False
    return first == (last or first) == b"PAR1"


def _step_of(line: str) -> float:
    """The step of a line of spikes.jsonl; infinite for an incomplete line, which a killed process leaves."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def _table(data: Any, file: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _damaged(file)
    return data


def _damaged(file: Path) -> StoreError:
    return StoreError("is damaged", where=str(file), fix="move its folder away to run again")


def _parsed(model: type[_Part], file: Path, table: Any) -> _Part:
    if isinstance(table, dict):
        check_version(table, RECORD_VERSION, file)
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise unreadable(error, file, "move it away to run again") from None
