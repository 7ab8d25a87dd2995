"""The store: run folders and what stands in them. Only this module knows the file names.

    store/runs/<id>/
        spec.json        what the run is (identity and resolved spec), written once
        request.json     how to carry it out now: experiment with paths, evaluation, roots, device, threads
        progress.json    where it is: step, steps, images/s, attempt, pid
        metrics.jsonl    a line every few steps
        checkpoint.pt    state to go on from
        weights.pt       the final model
        record.json      what came out: its presence means done
        failure.json     why the last attempt did not complete
        outcomes/        per-sample outcomes of evaluation sets
        log.txt          what the worker printed
        lock             held by the living attempt
    store/data/          generated worlds and indexes of shards
    store/features/      teachers' features, one folder for each (data, teacher)
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harness.errors import StoreError
from harness.files import read_json, write_json, write_text
from harness.identity import Identity, check_same
from harness.record import Failure, Record, StepMetrics

SPEC_VERSION = 1
_Part = TypeVar("_Part", Record, Failure)


class State(StrEnum):
    """Where a run stands, as its folder tells."""

    MISSING = "missing"
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    FAILED = "failed"
    DONE = "done"


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.request = path / "request.json"
        self.progress = path / "progress.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights.pt"
        self.record_file = path / "record.json"
        self.failure_file = path / "failure.json"
        self.outcomes = path / "outcomes"
        self.log = path / "log.txt"
        self.lock = path / "lock"

    @property
    def id(self) -> str:
        """The run's id."""
        return self.path.name

    def state(self) -> State:
        """Where the run stands."""
        if self.record_file.exists():
            return State.DONE
        if self.is_locked():
            return State.RUNNING
        if self.failure_file.exists():
            return State.INTERRUPTED if self.failure().cause == "interrupted" else State.FAILED
        return State.INTERRUPTED if self.progress.exists() else State.MISSING

    def prepare(self, identity: Identity, request: dict[str, Any]) -> None:
        """Make the folder ready for an attempt: freeze or compare the spec, state how to carry it out.

        Raises:
            StoreError: the folder holds a run of other defaults under this id, or cannot be written.
        """
        if self.spec.exists():
            self.check(identity)
        else:
            frozen = {"version": SPEC_VERSION, "id": identity.id, "identity": identity.payload}
            write_json(self.spec, frozen | {"resolved": identity.resolved})
        write_json(self.request, request)

    def check(self, identity: Identity) -> None:
        """Raise StoreError if the folder's spec is not what `identity` says."""
        check_same(read_json(self.spec)["resolved"], identity, self.path)

    def record(self) -> Record:
        """The record of a finished run.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        return _parsed(Record, self.record_file)

    def failure(self) -> Failure:
        """Why the last attempt did not complete."""
        return _parsed(Failure, self.failure_file)

    def finish(self, record: Record) -> None:
        """Write the record: from now on the run is done."""
        write_json(self.record_file, record.model_dump(mode="json"))
        self.failure_file.unlink(missing_ok=True)

    def fail(self, failure: Failure) -> None:
        """Write why an attempt ended early."""
        write_json(self.failure_file, failure.model_dump(mode="json"))

    def step_metrics(self) -> list[StepMetrics]:
        """The lines of metrics.jsonl; a line torn by a kill is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [StepMetrics.model_validate_json(line) for line in lines if line.endswith("\n")]

    def keep_metrics_until(self, step: int) -> None:
        """Drop lines of metrics.jsonl after `step`: an attempt that resumes there writes them again."""
        if self.metrics.exists():
            kept = [line for line in self.step_metrics() if line.step <= step]
            write_text(self.metrics, "".join(f"{line.model_dump_json()}\n" for line in kept))

    def append_metrics(self, step: int, values: dict[str, float]) -> None:
        """Add a line to metrics.jsonl."""
        line = StepMetrics(step=step, time=time.time(), values=values)
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(f"{line.model_dump_json()}\n")

    def read_progress(self) -> dict[str, Any]:
        """The last progress report, or an empty one."""
        return dict(read_json(self.progress)) if self.progress.exists() else {}

    def is_locked(self) -> bool:
        """Whether a living process of this machine works on the run."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go when the process dies, however it dies.

        Raises:
            StoreError: another living process holds it.
        """
        with exclusive(self.lock, wait=False) as held:
            if not held:
                raise StoreError("another process works on this run", where=str(self.path), fix="wait for it")
            yield


@dataclass(frozen=True)
class Store:
    """The root of everything that runs produce."""

    root: Path

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run, whether it exists or not."""
        return RunFolder(self.root / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """All run folders."""
        return [RunFolder(path.parent) for path in sorted(self.root.glob("runs/*/spec.json"))]

    @property
    def data(self) -> Path:
        """Where generated worlds and indexes are kept."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """Where teachers' features are kept."""
        return self.root / "features"

    @property
    def reports(self) -> Path:
        """Where reports are written by default."""
        return self.root / "reports"

    def find(self, prefix: str) -> RunFolder:
        """The run whose id begins with `prefix`.

        Raises:
            StoreError: none or several do.
        """
        found = [folder for folder in self.runs() if folder.id.startswith(prefix)]
        if len(found) != 1:
            fix = "`harness status SPEC` lists the ids" if not found else "give more digits"
            raise StoreError(f"{len(found)} runs have an id that begins with {prefix!r}", where=str(self.root), fix=fix)
        return found[0]


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`; yields whether it is held (always, if `wait`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _parsed(model: type[_Part], file: Path) -> _Part:
    try:
        return model.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        what = f"is damaged or of another version ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise StoreError(what, where=str(file), fix="move it away to run again") from None
