"""The store: run folders and their contents. Only this module knows the file names.

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
store/store.json     the version of the store (see `harness.runs.versions`)
store/data/          generated worlds and indexes of shards
store/features/      teacher features, one folder for each (data, teacher)
store/evaluation/    cached features of evaluation sets; may be deleted
store/evaluation_sets/   cached contents of evaluation sets, by the state of their files; may be deleted. versions/ has
                         what each version of a set that a TOML file declares contained
store/ablations/     NAME@ORIGIN.json: the ablations that were carried out (see `harness.runs.noted`)
store/commands/      NAME.PID, locked by each command that carries out the ablation NAME
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

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
from harness.base.sums import make_room
from harness.runs.attempts import Attempts
from harness.runs.identity import Identity, check_same, digest
from harness.runs.integrity import check_record, require_unchanged, sealed
from harness.runs.record import RECORD_VERSION, Cost, Failure, Record, StepMetrics, TrainingEnd
from harness.runs.versions import begin_store, check_store, check_version, unreadable

SPEC_VERSION = 1
CLAIM_WAIT_S = 1.0
"""How long a claim waits for the lock. A process that checks whether the lock is held takes it for an instant, and a
claim must not fail because of that."""
TAKEOVER_WAIT_S = 20.0
"""How long to wait for a superseded attempt to release the lock. After that, only the fencing token stops its
writes."""


class _Registered(threading.local):
    """The commands that this thread has registered."""

    def __init__(self) -> None:
        self.files = set[Path]()


_registered = _Registered()
_Part = TypeVar("_Part", Record, Failure, Cost, TrainingEnd)


class Holder(NamedTuple):
    """The live process that holds a lock."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether the process is on this machine."""
        return self.host == socket.gethostname()


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


@dataclass(frozen=True)
class Store:
    """The root folder of everything that runs produce."""

    root: Path
    evaluation_root: Path | None = None
    """Folder of evaluation sets on this machine, from the settings."""

    def check(self) -> None:
        """Raise StoreError if a newer harness has written to the store. This writes nothing."""
        check_store(self.root)

    def begin(self) -> None:
        """Create the store and write its version, unless they exist. Call this before writing to the store.

        Raises:
            StoreError: a newer harness has written to it.
        """
        begin_store(self.root)

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run, which need not exist."""
        return RunFolder(self.root / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """All run folders."""
        return [RunFolder(path.parent) for path in sorted(self.root.glob("runs/*/spec.json"))]

    def states(self, run_ids: Iterable[str]) -> dict[str, State]:
        """The states of runs. Runs without a folder, which most of a large plan's runs are, cost nothing."""
        try:
            begun = set(os.listdir(self.root / "runs"))
        except (FileNotFoundError, NotADirectoryError):
            begun = set()
        return {run: self.run(run).state() if run in begun else State.MISSING for run in run_ids}

    @property
    def data(self) -> Path:
        """The folder of generated worlds and indexes."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """The folder of teacher features."""
        return self.root / "features"

    @property
    def evaluation_features(self) -> Path:
        """The folder of cached features of evaluation sets, whose size is bounded."""
        return self.root / "evaluation"

    @property
    def evaluation_sets(self) -> Path:
        """The folder of cached contents of evaluation sets."""
        return self.root / "evaluation_sets"

    @contextmanager
    def registered(self, name: str) -> Iterator[None]:
        """Register this process as one that carries out the ablation `name`. May be nested in one thread.

        Raises:
            StoreError: the store cannot be written.
        """
        self.begin()
        file = self._commands / f"{name}.{os.getpid()}"
        if file in _registered.files:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(file, wait=True))
            except OSError as error:
                raise unwritable(file, error) from error
            stack.callback(file.unlink, missing_ok=True)
            _registered.files.add(file)
            stack.callback(_registered.files.remove, file)
            yield

    def running_commands(self, name: str) -> list[Holder]:
        """The live commands that carry out the ablation `name`."""
        files = [file for file in self._commands.glob("*") if file.name.rpartition(".")[0] == name]
        return [found for file in sorted(files) if (found := holder(file)) is not None]

    @property
    def _commands(self) -> Path:
        return self.root / "commands"

    @property
    def reports(self) -> Path:
        """The default folder of reports."""
        return self.root / "reports"

    def find(self, prefix: str) -> RunFolder:
        """The run whose id begins with `prefix`.

        Raises:
            StoreError: no run's id does, or several runs' ids do.
        """
        found = [folder for folder in self.runs() if folder.id.startswith(prefix)]
        if len(found) != 1:
            fix = "list the ids with `harness status SPEC`" if not found else "give more digits"
            raise StoreError(f"{len(found)} runs have an id that begins with {prefix!r}", where=str(self.root), fix=fix)
        return found[0]


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`; yields whether it is held (always, if `wait`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_room(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        with suppress(OSError):  # on a full disk the lock works even without this content
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(
            f"cannot be read ({error.strerror})", where=str(path), fix="correct its permissions"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two checks do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(path: Path) -> Holder | None:
    """The live process that holds the lock `path`; None if there is none, or it has not written its id yet."""
    if not is_held(path):
        return None
    match path.read_text(encoding="utf-8", errors="replace").split():
        case [pid, host] if pid.isdecimal():
            return Holder(int(pid), host)
        case _:
            return None


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
