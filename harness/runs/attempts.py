"""Attempts at a run: numbered without locks, fenced so that only the newest may write, each with its cause in the end.

    attempts/N.json        who began attempt N, where and when; made with O_EXCL, so that a number is given once
    attempts/N.end.json    how it ended; the first statement stands

A scheduler that has given a node up starts the run anew elsewhere while the old processes may go on: two attempts are
alive then. The old one finds a higher number before its next write, stops itself and spoils nothing. It holds on file
systems where locks do not reach from node to node.
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
from harness.base.files import unwritable
from harness.runs.record import AttemptEnd, AttemptStart, Cause


@dataclass(frozen=True)
class Attempt:
    """One attempt as its files tell."""

    start: AttemptStart
    end: AttemptEnd | None
    """None while it runs, or when it died without a word."""


class Attempts:
    """The attempts at one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> int:
        """The highest number given so far; 0 before the first."""
        return max(self._numbers(), default=0)

    def begin(self, least: int = 1, job: str | None = None) -> int:
        """Take the next number, `least` or higher; from now on every older attempt is superseded.

        Args:
            job: id of a SLURM job that left no trace, where it is not this process that begins.

        Raises:
            StoreError: the folder cannot be written.
        """
        number = max(self.newest() + 1, least)
        while not self._taken(number, job):
            number += 1
        return number

    def check(self, number: int) -> None:
        """Raise SupersededError unless attempt `number` is the newest.

        The folder is listed rather than a name looked up: a network file system may remember for long that a name was
        missing, but asks anew when a folder is opened.
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
        """State how attempt `number` ended, unless that was stated already; on a full disk that is left to others."""
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
        """Attempts that run, or died without a word."""
        return [attempt.start for attempt in self.all() if attempt.end is None]

    def _taken(self, number: int, job: str | None) -> bool:
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
            return AttemptStart.model_validate_json((self._folder / f"{number}.json").read_bytes())
        except (ValidationError, OSError):  # begun this instant, or torn by a full disk
            return AttemptStart(number=number)

    def _end(self, number: int) -> AttemptEnd | None:
        try:
            return AttemptEnd.model_validate_json((self._folder / f"{number}.end.json").read_bytes())
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
    """Make the file with its content, which is too short to be torn; FileExistsError if it is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, f"{text}\n".encode())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def this_job() -> str:
    """The SLURM job of this process, `123` or `123_4`; empty outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def restarts() -> int:
    """How often SLURM had queued the job of this process again before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
