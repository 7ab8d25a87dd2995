"""Submissions on disk: the intent is written before sbatch is called, so that a crash in between doubles nothing.

store/submissions/<id>/
    intent.json     which runs, with what; written before the scheduler is asked
    job.json        the array's id; written once it is known, by whoever finds it
    closed.json     nothing more is to be done about it; a job that starts all the same leaves at once
    *.out           what the jobs printed besides their runs' own logs
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

from harness.base.files import read_json, unwritable, write_json, write_text
from harness.config.profile import JobResources, Profile
from harness.runs.store import Store, exclusive
from harness.runs.versions import unreadable

Phase = Literal["run", "train", "evaluate"]
CANCELLED = "cancelled"
"""Content of a job's file in settled/ that was cancelled by a person; the others are empty."""


class Intent(BaseModel):
    """What is to be submitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    """The array's name in SLURM, by which it is found after a crash."""
    ablation: str
    created_at: float
    phase: Phase
    tasks: tuple[tuple[str, ...], ...]
    """Runs of each job of the array."""
    resources: JobResources
    profile: Profile
    store: Path
    code: Path
    """The snapshot that runs."""
    origin: str = ""
    """Which spec it is for: a digest of its file and assignments. Two specs may have one name."""
    training: str = ""
    """The submission whose jobs train what those of this one evaluate."""
    allowance_gpu_hours: float | None = None
    """GPU-hours that each job may use, all its restarts together; None for no limit."""

    @classmethod
    def of(cls, ablation: str, phase: Phase, tasks: Iterable[Sequence[str]], **more: object) -> Intent:
        """A new intent with a name of its own."""
        token = secrets.token_hex(4)
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", ablation)[:40]
        created = time.time()
        identity = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(created))}-{token}"
        table = {"id": identity, "name": f"{stem}.{token}", "ablation": ablation, "created_at": created}
        return cls.model_validate({**table, "phase": phase, "tasks": tuple(map(tuple, tasks)), **more})


class Submission:
    """One submission's folder."""

    def __init__(self, folder: Path, intent: Intent) -> None:
        self.folder, self.intent = folder, intent
        self._cancelled: set[int] = set()
        self._array: str | None = None

    @property
    def array(self) -> str | None:
        """The array's id, once it is known."""
        file = self.folder / "job.json"
        if self._array is None and file.exists():
            self._array = str(read_json(file)["array"])
        return self._array

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is to be done about it."""
        return (self.folder / "closed.json").exists()

    def accept(self, array: str) -> None:
        """Remember under which id the scheduler accepted it."""
        self._array = array
        write_json(self.folder / "job.json", {"array": array, "at": time.time()})

    def close(self, why: str) -> None:
        """Have nothing more done about it."""
        write_json(self.folder / "closed.json", {"why": why, "at": time.time()})

    def settle(self, task: int) -> None:
        """Remember that one of its jobs ended before its runs were done, and was dealt with."""
        if not self.was_cancelled(task):
            write_text(self.folder / "settled" / str(task), "")

    def cancel(self, task: int) -> None:
        """Write down a person's wish to cancel one of its jobs.

        It holds whether or not the scheduler answers now: a job that runs looks for it and leaves, one that starts
        later leaves at once, and no command that watches submits its runs again.
        """
        write_text(self.folder / "settled" / str(task), CANCELLED)

    def was_cancelled(self, task: int) -> bool:
        """Whether a person asked to cancel one of its jobs."""
        if task not in self._cancelled:
            try:
                text = (self.folder / "settled" / str(task)).read_text(encoding="utf-8")
            except OSError:
                return False
            if text != CANCELLED:
                return False
            self._cancelled.add(task)
        return True

    def settled(self) -> set[int]:
        """Jobs that were dealt with."""
        try:
            return {int(name) for name in os.listdir(self.folder / "settled") if name.isdecimal()}
        except FileNotFoundError:
            return set()

    def note_leaving(self, task: int, restart: int) -> None:
        """Remember that SLURM asked a job to leave, and did not say why."""
        write_text(self.folder / "left" / f"{task}.{restart}", "")

    def was_asked_to_leave(self, task: int, restart: int) -> bool:
        """Whether SLURM asked that execution of a job to leave, and did not say why."""
        return (self.folder / "left" / f"{task}.{restart}").exists()

    def job(self, task: int) -> str:
        """The id of one of its jobs."""
        return f"{self.array}_{task}"


class SubmissionLog:
    """All submissions of a store."""

    def __init__(self, store: Store) -> None:
        self._root = store.root / "submissions"
        self._known: dict[str, Submission] = {}
        self._closed: set[str] = set()

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Hold the right to submit and to settle: one command at a time on a store.

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
        """Write an intent down.

        Raises:
            StoreError: it cannot be written.
        """
        folder = self._root / intent.id
        write_json(folder / "intent.json", intent.model_dump(mode="json"))
        return Submission(folder, intent)

    def open(self) -> list[Submission]:
        """Those about which something is still to be done, oldest first."""
        try:
            names = sorted(name for name in os.listdir(self._root) if name not in self._closed)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [submission for name in names if (submission := self._one(name)) is not None]

    def _one(self, name: str) -> Submission | None:
        """What was read once is remembered: intents never change, and what is closed stays so."""
        folder = self._root / name
        if (folder / "closed.json").exists():
            self._closed.add(name)
            return None
        if name not in self._known and (folder / "intent.json").exists():
            self._known[name] = load(folder)
        return self._known.get(name)


def load(folder: Path) -> Submission:
    """The submission in `folder`.

    Raises:
        StoreError: it is damaged, or cannot be seen from here.
    """
    try:
        return Submission(folder, Intent.model_validate(read_json(folder / "intent.json")))
    except ValidationError as error:
        raise unreadable(error, folder / "intent.json", "move its folder away") from None
