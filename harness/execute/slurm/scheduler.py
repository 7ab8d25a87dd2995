"""The seam to a batch scheduler: what is asked of it, and what it answers. SLURM stands behind it, or a made one.

A scheduler that does not answer is `UnreachableError`, which means that nothing is known: never that a job has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from harness.base.errors import DispatchError
from harness.config.profile import JobResources, Profile

Phase = Literal["pending", "running", "ended"]


class UnreachableError(DispatchError):
    """The controller or the accounting did not answer; ask again later."""


class UnsureError(DispatchError):
    """A submission was answered with an error, or not at all, but may have been accepted: look for it by its name."""


class HeldBackError(DispatchError):
    """A submission was refused because of a limit on the number of jobs; it will pass later, or a smaller one now."""


class RefusedError(DispatchError):
    """A submission was refused for what it asks, and would be again."""


@dataclass(frozen=True)
class ArrayRequest:
    """An array of jobs that is submitted in one call."""

    name: str
    """Unique: how the jobs are found again after a crash in the middle of submission."""
    folder: Path
    """Where the script and what jobs print are kept; seen by head and nodes."""
    command: str
    """Shell command of every job. SLURM_ARRAY_TASK_ID tells it which one it is, from 0."""
    tasks: int
    """How many jobs."""
    resources: JobResources
    """Of one job."""
    profile: Profile
    after: tuple[str, ...] = ()
    """Ids of jobs that have to end first, however they end."""
    corresponding: str | None = None
    """Id of an array of the same size: each job waits for the one of its number there to end well."""


@dataclass(frozen=True)
class Job:
    """A job, or one of an array, as the scheduler sees it now or saw it last."""

    id: str
    """`123` or, of an array, `123_4`."""
    phase: Phase
    state: str
    """SLURM's word for it: PENDING, RUNNING, NODE_FAIL, OUT_OF_MEMORY..."""
    reason: str = ""
    """Why it waits, or its exit code."""
    node: str = ""
    name: str = ""
    started_at: float | None = None
    """Unix time in seconds by the scheduler's clock."""
    ended_at: float | None = None
    memory_share: float = 0.0
    """Largest memory of one of its processes, as a share of what it asked for; 0 where it is not known."""

    @property
    def is_stuck(self) -> bool:
        """Whether SLURM could not launch it and holds it until somebody releases it."""
        return self.phase == "pending" and self.reason.replace("_", " ").startswith("launch failed requeued held")


@dataclass(frozen=True)
class Limits:
    """What the cluster allows and keeps."""

    max_array: int
    """The most jobs in one array."""
    accounting: bool
    """Whether ended jobs can be asked for."""


@dataclass(frozen=True)
class Partition:
    """A partition's largest node."""

    name: str
    nodes: int
    cpus: int
    mem_gb: float
    gpus: int
    time_limit_min: float
    """Infinite where there is no limit."""


class Scheduler(Protocol):
    """A batch scheduler. Each method is at most one or two calls to it, however many jobs there are."""

    def limits(self) -> Limits:
        """What the cluster allows and keeps.

        Raises:
            UnreachableError: it does not answer.
        """

    def partitions(self) -> Sequence[Partition]:
        """The partitions that there are.

        Raises:
            UnreachableError: it does not answer.
        """

    def accounts(self) -> Sequence[str]:
        """Accounts that this user may charge; none where it cannot be told.

        Raises:
            UnreachableError: it does not answer.
        """

    def submit(self, batch: ArrayRequest) -> str:
        """Submit an array; returns its id. Its jobs are `ID_0`, `ID_1`...

        Raises:
            HeldBackError: a limit on the number of jobs is reached.
            RefusedError: what it asks for is not to be had.
            UnsureError: nobody knows whether it was accepted.
        """

    def queue(self) -> Sequence[Job]:
        """All of this user's jobs that wait, run, or ended a short while ago.

        Raises:
            UnreachableError: it does not answer.
        """

    def history(self, arrays: Collection[str]) -> Sequence[Job]:
        """Every ended execution of the jobs of these arrays, a job's in order; nothing where there is no accounting.

        A job that was queued again appears once for each time it ended.

        Raises:
            UnreachableError: it does not answer.
        """

    def find(self, names: Collection[str]) -> dict[str, str]:
        """The ids of the arrays of these names, for those that were ever accepted.

        Raises:
            UnreachableError: it does not answer, so that a name not found may have been accepted all the same.
        """

    def cancel(self, jobs: Collection[str]) -> None:
        """End jobs that wait, and ask running ones to stop.

        Raises:
            UnreachableError: it does not answer.
        """

    def release(self, jobs: Collection[str]) -> None:
        """Let jobs wait for a node again that are held.

        Raises:
            UnreachableError: it does not answer.
        """
