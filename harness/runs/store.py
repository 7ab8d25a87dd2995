"""The store: run folders and what stands in them. Only this module knows the file names.

store/runs/<id>/
    spec.json        what the run is (identity and resolved spec), written once
    request.json     how to carry it out now: experiment with paths, evaluation, roots, device, threads
    progress.json    where it is: step, steps, images/s, attempt, pid
    pause.json       train no further than this step for now; written by a search, looked at by the training loop
    metrics.jsonl    a line every few steps
    spikes.jsonl     a line for each step whose loss stood out, with its samples
    checkpoint.pt    state to go on from; checkpoint-<step>.pt are those before it, where several are kept
    weights.pt       the final model
    training.json    what its training has cost, until the evaluation is done
    record.json      what came out: its presence means done
    failure.json     why the last attempt did not complete
    gallery.json     a few images with the captions that mining gave them
    outcomes/        per-sample outcomes of evaluation sets
    log.txt          what the worker printed
    attempts/        who began each attempt, and how it ended (see `harness.runs.attempts`)
    lock             held by the living attempt; says which process that is
store/store.json     the version of the store (see `harness.runs.versions`)
store/data/          generated worlds and indexes of shards
store/features/      teachers' features, one folder for each (data, teacher)
store/evaluation/    features of evaluation sets; may be deleted
store/evaluation_sets/   what evaluation sets contain, by the state of their files; may be deleted
store/commands/      NAME.PID, held by each command that conducts the ablation NAME
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from pydantic import ValidationError

from harness.base.errors import StoreError
from harness.base.files import check_fences, fenced, read_json, unwritable, write_json, write_text
from harness.runs.attempts import Attempts
from harness.runs.identity import Identity, check_same
from harness.runs.record import RECORD_VERSION, Cost, Failure, Record, StepMetrics
from harness.runs.versions import begin_store, check_store, check_version, unreadable

SPEC_VERSION = 1
CLAIM_WAIT_S = 1.0
"""Whoever looks whether a lock is held holds it for an instant; a claim does not give up for that."""
TAKEOVER_WAIT_S = 20.0
"""How long a superseded attempt is waited for. After that the fence alone keeps it from writing."""
_Part = TypeVar("_Part", Record, Failure, Cost)


class Holder(NamedTuple):
    """The living process that holds a lock."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()


class State(StrEnum):
    """Where a run stands, as its folder tells."""

    MISSING = "missing"
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    FAILED = "failed"
    DONE = "done"


class _File:
    """A file or folder of that name in a run folder. Its path is only made where it is asked for."""

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
    pause = _File("pause.json")
    metrics = _File("metrics.jsonl")
    checkpoint = _File("checkpoint.pt")
    weights = _File("weights.pt")
    training_file = _File("training.json")
    record_file = _File("record.json")
    failure_file = _File("failure.json")
    spikes = _File("spikes.jsonl")
    outcomes = _File("outcomes")
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
        """The attempts at the run."""
        return Attempts(self.path / "attempts")

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

        An earlier attempt's failure is forgotten, lest it be taken for that of the new one; so is a pause.

        Raises:
            StoreError: the folder holds a run of other defaults under this id, or cannot be written.
        """
        if self.spec.exists():
            self.check(identity)
        else:
            frozen = {"version": SPEC_VERSION, "id": identity.id, "identity": identity.payload}
            write_json(self.spec, frozen | {"resolved": identity.resolved})
        write_json(self.request, request)
        self.failure_file.unlink(missing_ok=True)
        self.pause.unlink(missing_ok=True)

    def check(self, identity: Identity) -> None:
        """Raise StoreError if the folder's spec is not what `identity` says."""
        check_same(self.resolved(), identity, self.path)

    def resolved(self) -> dict[str, Any]:
        """The run's spec with every default spelled out, as it was frozen.

        Raises:
            StoreError: spec.json is damaged, or a newer harness wrote it.
        """
        table = _table(read_json(self.spec), self.spec)
        check_version(table, SPEC_VERSION, self.spec)
        return _table(table.get("resolved"), self.spec)

    def record(self) -> Record:
        """The record of a finished run.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        return _parsed(Record, self.record_file)

    def failure(self) -> Failure:
        """Why the last attempt did not complete."""
        return _parsed(Failure, self.failure_file)

    def note_training(self, cost: Cost) -> None:
        """Write what the training has cost; the evaluation may be somebody else's."""
        write_json(self.training_file, cost.model_dump(mode="json"))

    def training(self) -> Cost:
        """What the training has cost, until the record says so.

        Raises:
            StoreError: it is not noted, or damaged.
        """
        return _parsed(Cost, self.training_file)

    def is_trained(self) -> bool:
        """Whether only the evaluation is missing."""
        return self.weights.exists() and self.training_file.exists()

    def finish(self, record: Record) -> None:
        """Write the record: from now on the run is done."""
        write_json(self.record_file, record.model_dump(mode="json"))
        self.training_file.unlink(missing_ok=True)
        self.failure_file.unlink(missing_ok=True)

    def fail(self, failure: Failure) -> None:
        """Write why an attempt ended early."""
        write_json(self.failure_file, failure.model_dump(mode="json"))

    def pause_at(self, step: int | None) -> None:
        """Ask the training loop to write a checkpoint and leave at `step`, or at once if it is past that.

        None: to go on to the end.
        """
        if step is None:
            self.pause.unlink(missing_ok=True)
        else:
            write_json(self.pause, {"step": step})

    def pause_step(self) -> int | None:
        """The step that training is not to go beyond for now; None if there is no such limit."""
        try:
            return int(_table(read_json(self.pause), self.pause)["step"]) if self.pause.exists() else None
        except (KeyError, TypeError, ValueError):
            fix = "delete it: the run goes on then"
            raise StoreError("is damaged", where=str(self.pause), fix=fix) from None

    def is_paused(self) -> bool:
        """Whether the run has got as far as it was asked to go for now."""
        limit = self.pause_step()
        return limit is not None and not self.record_file.exists() and self.read_progress().get("step", -1) >= limit

    def step_metrics(self) -> list[StepMetrics]:
        """The lines of metrics.jsonl, a step once: a superseded attempt may have written a last line beside its heir.

        A line torn by a kill is left out.

        Raises:
            StoreError: another line is damaged.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_bytes().splitlines(keepends=True)
        parsed = [self._line(number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]
        return [step for _, step in sorted({line.step: line for line in parsed}.items())]

    def _line(self, number: int, line: bytes) -> StepMetrics:
        try:
            return StepMetrics.model_validate_json(line)
        except ValidationError:
            fix = "delete that line: it only makes a curve"
            raise StoreError(f"line {number} is damaged", where=str(self.metrics), fix=fix) from None

    def keep_metrics_until(self, step: int) -> None:
        """Drop lines of metrics.jsonl and spikes.jsonl after `step`: an attempt that resumes there writes them anew."""
        if self.metrics.exists():
            kept = [line for line in self.step_metrics() if line.step <= step]
            write_text(self.metrics, "".join(f"{line.model_dump_json(exclude_defaults=True)}\n" for line in kept))
        if self.spikes.exists():
            spikes = [line for line in self.spikes.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_text(self.spikes, "".join(f"{line}\n" for line in spikes))

    def append_metrics(
        self, step: int, values: Mapping[str, float], evaluated: Mapping[str, str] | None = None
    ) -> None:
        """Add a line to metrics.jsonl.

        Args:
            evaluated: for each metric of an evaluation set among the values, a digest of what it depends on.

        Raises:
            StoreError: it cannot be written (full disk).
        """
        line = StepMetrics(step=step, time=time.time(), values=dict(values), evaluated=dict(evaluated or {}))
        self._append(self.metrics, line.model_dump_json(exclude_defaults=True))

    def append_spike(self, spike: dict[str, Any]) -> None:
        """Add a line to spikes.jsonl.

        Raises:
            StoreError: it cannot be written (full disk).
        """
        self._append(self.spikes, json.dumps(spike))

    def _append(self, file: Path, line: str) -> None:
        check_fences(file)
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")
        except OSError as error:
            raise unwritable(file, error) from error

    def read_progress(self) -> dict[str, Any]:
        """The last progress report, or an empty one.

        Raises:
            StoreError: it is damaged.
        """
        if not self.progress.exists():
            return {}
        table = _table(read_json(self.progress), self.progress)
        if not all(isinstance(value, int | float) for value in table.values()):
            raise StoreError("is damaged", where=str(self.progress), fix="delete it: it only says where the run is")
        return table

    def is_locked(self) -> bool:
        """Whether a living process works on the run."""
        return is_held(self.lock)

    def holder(self) -> Holder | None:
        """The living process that works on the run."""
        return holder(self.lock)

    @contextmanager
    def claimed(self, *, takeover: bool = False) -> Iterator[int]:
        """Hold the run for this process and begin an attempt, whose number is given; older ones are superseded.

        The kernel lets go when the process dies, however it dies. While the run is held, every write into its folder
        is refused once a newer attempt has begun.

        Args:
            takeover: a scheduler has given the run to this process: whoever still holds it is superseded.

        Raises:
            StoreError: another living process holds it, or its folder cannot be written.
        """
        with ExitStack() as stack:
            number = self._begun() if takeover else 0
            held = self._held(stack, TAKEOVER_WAIT_S if takeover else CLAIM_WAIT_S)
            if not held and not takeover:
                raise StoreError("another process works on this run", where=str(self.path), fix="wait for it")
            number = number or self._begun()
            stack.enter_context(fenced(self.path, lambda: self.attempts.check(number)))
            if held:
                self._sweep()
            yield number

    def _begun(self) -> int:
        # Folders of before attempts were numbered say in progress.json how many there were.
        return self.attempts.begin(int(self.read_progress().get("attempt", 0)) + 1)

    def _held(self, stack: ExitStack, patience_s: float) -> bool:
        until = time.monotonic() + patience_s
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

    def _sweep(self) -> None:
        """Remove what a killed attempt was writing aside. Only the attempt that holds the run writes these files."""
        for file in (self.progress, self.metrics, self.checkpoint, self.weights, self.record_file, self.failure_file):
            for aside in self.path.glob(f".{file.name}.*"):
                aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Store:
    """The root of everything that runs produce."""

    root: Path
    evaluation_root: Path | None = None
    """Folder of evaluation sets on this machine, as the settings have it."""

    def check(self) -> None:
        """Raise StoreError if a newer harness has written to the store. Writes nothing."""
        check_store(self.root)

    def begin(self) -> None:
        """Make the store and state its version, unless that is done. Call this before anything is written to it.

        Raises:
            StoreError: a newer harness has written to it.
        """
        begin_store(self.root)

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run, whether it exists or not."""
        return RunFolder(self.root / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """All run folders."""
        return [RunFolder(path.parent) for path in sorted(self.root.glob("runs/*/spec.json"))]

    def states(self, run_ids: Iterable[str]) -> dict[str, State]:
        """Where runs stand. Runs that have no folder, most of a large plan's, cost nothing."""
        try:
            begun = set(os.listdir(self.root / "runs"))
        except (FileNotFoundError, NotADirectoryError):
            begun = set()
        return {run: self.run(run).state() if run in begun else State.MISSING for run in run_ids}

    @property
    def data(self) -> Path:
        """Where generated worlds and indexes are kept."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """Where teachers' features are kept."""
        return self.root / "features"

    @property
    def evaluation_features(self) -> Path:
        """Where features of evaluation sets are kept, up to a bound."""
        return self.root / "evaluation"

    @property
    def evaluation_sets(self) -> Path:
        """Where it is kept what evaluation sets contain."""
        return self.root / "evaluation_sets"

    @contextmanager
    def registered(self, name: str) -> Iterator[None]:
        """Announce that this process conducts the ablation `name`.

        Raises:
            StoreError: the store cannot be written.
        """
        self.begin()
        file = self._commands / f"{name}.{os.getpid()}"
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(file, wait=True))
            except OSError as error:
                raise unwritable(file, error) from error
            stack.callback(file.unlink, missing_ok=True)
            yield

    def running_commands(self, name: str) -> list[Holder]:
        """The living commands that conduct the ablation `name`."""
        files = [file for file in self._commands.glob("*") if file.name.rpartition(".")[0] == name]
        return [found for file in sorted(files) if (found := holder(file)) is not None]

    @property
    def _commands(self) -> Path:
        return self.root / "commands"

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
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", where=str(path), fix="mend the permissions") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who look do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(path: Path) -> Holder | None:
    """The living process that holds the lock `path`; None where none does, or it has not said yet who it is."""
    if not is_held(path):
        return None
    match path.read_text(encoding="utf-8", errors="replace").split():
        case [pid, host] if pid.isdecimal():
            return Holder(int(pid), host)
        case _:
            return None


def _step_of(line: str) -> float:
    """The step of a line of spikes.jsonl; a line torn by a kill belongs to no step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _table(data: Any, file: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise StoreError("is damaged", where=str(file), fix="move its folder away to run again")
    return data


def _parsed(model: type[_Part], file: Path) -> _Part:
    table = read_json(file)
    if isinstance(table, dict):
        check_version(table, RECORD_VERSION, file)
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise unreadable(error, file, "move it away to run again") from None
