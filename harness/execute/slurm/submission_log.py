"""The submission log on disk. An intent is written before sbatch is called, so a crash never submits a run twice.

store/submissions/<id>/
    intent.json     the runs and their resources; written before the scheduler is called
    job.json        the array's id; written by the first command that learns it
    closed.json     the submission needs no further work; a job of it that still starts exits at once
    *.out           the jobs' output, apart from their runs' own logs
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.base.errors import StoreError
from harness.base.files import read_json, read_text, unwritable, write_json, write_text
from harness.base.locks import exclusive
from harness.config.profile import JobResources, Profile
from harness.runs.store import Store
from harness.runs.versions import unreadable

Phase = Literal["run", "train", "evaluate"]
CANCELLED = "cancelled"
"""Content of the file in settled/ for a job that the user cancelled; the files of other jobs are empty."""


class Intent(BaseModel):
    """A job array that is about to be submitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    """The array's unique name in SLURM, used to find it after a crash."""
    ablation: str
    created_at: float
    phase: Phase
    tasks: tuple[tuple[str, ...], ...]
    """The runs of each job of the array."""
    resources: JobResources
    profile: Profile
    store: Path
    code: Path
    """The code snapshot that the jobs run."""
    origin: str = ""
    """The spec: a digest of its file and assignments, because two specs may have the same name."""
    training: str = ""
    """For an evaluation: the submission whose jobs train its runs."""
    allowance_gpu_hours: float | None = None
    """GPU-hours that each job may use, including all its restarts; None for no limit."""

    @classmethod
    def of(cls, ablation: str, phase: Phase, tasks: Iterable[Sequence[str]], **more: object) -> Intent:
        """Create an intent with a new id and a unique name."""
        token = secrets.token_hex(4)
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", ablation)[:40]
        created = time.time()
        moment = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(created))}.{int(created % 1 * 1e6):06}"
        table = {"id": f"{moment}-{token}", "name": f"{stem}.{token}", "ablation": ablation, "created_at": created}
        return cls.model_validate({**table, "phase": phase, "tasks": tuple(map(tuple, tasks)), **more})


class Submission:
    """One submission's folder."""

    def __init__(self, folder: Path, intent: Intent) -> None:
        self.folder, self.intent = folder, intent
        self._cancelled: set[int] = set()
        self._array: str | None = None

    @property
    def array(self) -> str | None:
        """The array's id; None while it is unknown."""
        file = self.folder / "job.json"
        if self._array is None and file.exists():
            match read_json(file):
                case {"array": str() | int() as array}:
                    self._array = str(array)
                case _:
                    fix = "restore it: it holds the id of a job array"
                    raise StoreError("is damaged", where=str(file), fix=fix)
        return self._array

    @property
    def is_closed(self) -> bool:
        """Whether the submission needs no further work."""
        return (self.folder / "closed.json").exists()

    def accept(self, array: str) -> None:
        """Record the id under which the scheduler accepted the submission."""
        self._array = array
        write_json(self.folder / "job.json", {"array": array, "at": time.time()})

    def close(self, why: str) -> None:
        """Mark the submission as needing no further work."""
        write_json(self.folder / "closed.json", {"why": why, "at": time.time()})

    def settle(self, task: int) -> None:
        """Record that a job ended before its runs were done, and that this has been handled."""
        if not self.was_cancelled(task):
            write_text(self.folder / "settled" / str(task), "")

    def cancel(self, task: int) -> None:
        """Record the user's request to cancel a job.

        The request takes effect even if the scheduler does not answer now: a running job finds it and stops, a job
        that starts later exits at once, and no running command submits its runs again.
        """
        write_text(self.folder / "settled" / str(task), CANCELLED)

    def was_cancelled(self, task: int) -> bool:
        """Whether the user asked to cancel a job."""
        if task not in self._cancelled:
            try:
                text = read_text(self.folder / "settled" / str(task))
            except FileNotFoundError:
                return False
            if text != CANCELLED:
                return False
            self._cancelled.add(task)
        return True

    def settled(self) -> set[int]:
        """The jobs whose cancellation or early end has been handled."""
        try:
            return {int(name) for name in os.listdir(self.folder / "settled") if name.isdecimal()}
        except FileNotFoundError:
            return set()

    def note_leaving(self, task: int, restart: int) -> None:
        """Record that SLURM signalled a job to end without giving a reason."""
        write_text(self.folder / "left" / f"{task}.{restart}", "")

    def was_asked_to_leave(self, task: int, restart: int) -> bool:
        """Whether SLURM signalled this execution of a job to end without giving a reason."""
        return (self.folder / "left" / f"{task}.{restart}").exists()

    def job(self, task: int) -> str:
        """The scheduler's id of one of the submission's jobs."""
        return f"{self.array}_{task}"


class SubmissionLog:
    """All submissions of a store."""

    def __init__(self, store: Store) -> None:
        self._root = store.root / "submissions"
        self._known: dict[str, Submission] = {}
        self._closed: set[str] = set()

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Hold the lock for submitting and settling: one command at a time on a store.

        Raises:
            StoreError: the store cannot be written.
        """
        file = self._root / "lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(file, wait=True))
            except OSError as error:
                raise unwritable(file, error) from error
            yield

    def add(self, intent: Intent) -> Submission:
        """Write an intent to disk.

        Raises:
            StoreError: it cannot be written.
        """
        folder = self._root / intent.id
        write_json(folder / "intent.json", intent.model_dump(mode="json"))
        return Submission(folder, intent)

    def open(self) -> list[Submission]:
        """The submissions that are not closed, oldest first."""
        try:
            names = sorted(name for name in os.listdir(self._root) if name not in self._closed)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [submission for name in names if (submission := self._one(name)) is not None]

    def _one(self, name: str) -> Submission | None:
        """The submission `name`; None if it is closed. Cached, because intents never change and closed stays closed."""
        folder = self._root / name
        if (folder / "closed.json").exists():
            self._closed.add(name)
            return None
        if name not in self._known and (folder / "intent.json").exists():
            self._known[name] = load(folder)
        return self._known.get(name)


def load(folder: Path) -> Submission:
    """Read the submission in `folder`.

    Raises:
        StoreError: it is damaged, or not visible from this machine.
    """
    try:
        return Submission(folder, Intent.model_validate(read_json(folder / "intent.json")))
    except ValidationError as error:
        raise unreadable(error, folder / "intent.json", "move its folder away") from None
