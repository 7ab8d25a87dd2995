"""Attempts at a run. Their numbers are fencing tokens: only the newest attempt may write to the run's folder.

    attempts/N.json        the process that began attempt N, where and when; created with O_EXCL, so N is used once
    attempts/N.end.json    how it ended; the first statement is kept

If a scheduler gives up a node, it restarts the run elsewhere while the old processes may still be running, so two
attempts are alive. The old one finds a higher number before its next write, and stops without writing. This needs no
locks, so it also works on file systems whose locks do not reach from node to node.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.base.errors import SupersededError
from harness.base.files import read_bytes, unwritable
from harness.runs.record import AttemptEnd, AttemptStart, Cause


@dataclass(frozen=True)
class Attempt:
    """One attempt, read from its files."""

    start: AttemptStart
    end: AttemptEnd | None
    """None while it runs, or if it died without an exit record."""


class Attempts:
    """The attempts at one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> int:
        """The highest attempt number so far; 0 if there is none."""
        return max(self._numbers(), default=0)

    def begin(self, least: int = 1, job: str | None = None) -> int:
        """Take the next number, `least` or higher. From then on, every older attempt is superseded.

        Args:
            job: id of a SLURM job that left no record, to register an attempt on its behalf; None for this process.

        Raises:
            StoreError: the folder cannot be written.
        """
        number = max(self.newest() + 1, least)
        while not self._take(number, job):
            number += 1
        return number

    def check(self, number: int) -> None:
        """Raise SupersededError unless attempt `number` is the newest.

        This lists the folder instead of looking up a name: a network file system may cache for long that a name is
        missing, but it asks the server again when a folder is opened.
        """
        if (newest := self.newest()) > number:
            raise SupersededError(f"attempt {newest} has taken over from attempt {number}", where=str(self._folder))

    def end(
        self,
        number: int,
        cause: Cause,
        message: str,
        *,
        step: int = 0,
        raised: bool = False,
        ended_at: float | None = None,
    ) -> None:
        """Record how attempt `number` ended, unless that is already recorded. On a full disk, nothing is written and
        another process records it later.
        """
        ended_at = ended_at or time.time()
        end = AttemptEnd(cause=cause, message=message, step=step, raised=raised, ended_at=ended_at)
        with suppress(OSError):
            _create(self._folder / f"{number}.end.json", end.model_dump_json())

    def all(self) -> list[Attempt]:
        """Every attempt, oldest first."""
        return self.since(0)

    def since(self, number: int) -> list[Attempt]:
        """The attempts after attempt `number`, oldest first."""
        return [Attempt(self._start(one), self._end(one)) for one in sorted(self._numbers()) if one > number]

    def open(self) -> list[AttemptStart]:
        """Attempts that are running, or died without an exit record."""
        return [attempt.start for attempt in self.all() if attempt.end is None]

    def _take(self, number: int, job: str | None) -> bool:
        start = _of_this_process(number) if job is None else AttemptStart(number=number, job=job)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _create(self._folder / f"{number}.json", start.model_dump_json())
        except FileExistsError:
            return False
        except OSError as error:
            raise unwritable(self._folder / f"{number}.json", error) from error
        return True

    def _numbers(self) -> Iterator[int]:
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return iter(())
        stems = (name.removesuffix(".json") for name in names)
        return (int(stem) for stem in stems if stem.isdecimal())

    def _start(self, number: int) -> AttemptStart:
        try:
            return AttemptStart.model_validate_json(read_bytes(self._folder / f"{number}.json"))
        except (ValidationError, OSError):  # just being written, or cut short by a full disk
            return AttemptStart(number=number)

    def _end(self, number: int) -> AttemptEnd | None:
        try:
            return AttemptEnd.model_validate_json(read_bytes(self._folder / f"{number}.end.json"))
        except (ValidationError, OSError):
            return None


def _of_this_process(number: int) -> AttemptStart:
    return AttemptStart(
        number=number,
        job=this_job(),
        restart=restarts(),
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=os.getpid(),
        started_at=time.time(),
        gpus=float(os.environ.get("HARNESS_GPUS") or "0"),
        cores=float(os.environ.get("HARNESS_CORES") or "0"),
    )


def _create(path: Path, text: str) -> None:
    """Create the file with its content, which is short enough for one write; raises FileExistsError if it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, f"{text}\n".encode())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def this_job() -> str:
    """The SLURM job of this process, `123` or `123_4`; empty outside a job."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def restarts() -> int:
    """How often SLURM has requeued the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
