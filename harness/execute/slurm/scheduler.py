"""The interface to a batch scheduler: its requests and its answers. SLURM implements it, and so does a fake for tests.

If a scheduler does not answer, it raises `UnreachableError`. The state of jobs is then unknown; they have not ended.
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
    """The controller or the accounting did not answer; retry later."""


class UnsureError(DispatchError):
    """A submission got an error or no answer, but may have been accepted: search for it by its name."""


class HeldBackError(DispatchError):
    """A limit on the number of jobs rejected a submission. A smaller one may pass now, or the same one later."""


class RefusedError(DispatchError):
    """A submission was refused because of what it requests. Repeating it would fail again."""


@dataclass(frozen=True)
class ArrayRequest:
    """A job array that is submitted in one call."""

    name: str
    """A unique name, used to find the jobs after a crash in the middle of submission."""
    folder: Path
    """Folder of the script and the jobs' output; visible to head and nodes."""
    command: str
    """Shell command of every job. SLURM_ARRAY_TASK_ID gives the job's index, from 0."""
    tasks: int
    """Number of jobs."""
    resources: JobResources
    """Resources of one job."""
    profile: Profile
    after: tuple[str, ...] = ()
    """Ids of jobs that must end first, successfully or not."""
    corresponding: str | None = None
    """Id of an array of the same size: each job waits until the job with its index there has succeeded."""


@dataclass(frozen=True)
class Job:
    """A job, alone or in an array, in the last state that the scheduler reported."""

    id: str
    """`123` or, in an array, `123_4`."""
    phase: Phase
    state: str
    """SLURM's job state: PENDING, RUNNING, NODE_FAIL, OUT_OF_MEMORY..."""
    reason: str = ""
    """Why it is pending, or its exit code."""
    node: str = ""
    name: str = ""
    started_at: float | None = None
    """Unix time in seconds, from the scheduler's clock."""
    ended_at: float | None = None
    memory_share: float = 0.0
    """Largest memory use of one of its processes, as a share of the requested memory; 0 if unknown."""

    @property
    def is_stuck(self) -> bool:
        """Whether SLURM failed to launch it and holds it until it is released by hand."""
        return self.phase == "pending" and self.reason.replace("_", " ").startswith("launch failed requeued held")


@dataclass(frozen=True)
class Limits:
    """Limits and features of a cluster."""

    max_array: int
    """Maximum number of jobs in one array."""
    accounting: bool
    """Whether accounting is available, which knows ended jobs."""


@dataclass(frozen=True)
class Partition:
    """A partition's largest node."""

    name: str
    nodes: int
    cpus: int
    mem_gb: float
    gpus: int
    time_limit_min: float
    """Infinite if there is no limit."""


class Scheduler(Protocol):
    """A batch scheduler. Each method makes at most one or two calls to it, for any number of jobs."""

    def limits(self) -> Limits:
        """The cluster's limits and features.

        Raises:
            UnreachableError: it does not answer.
        """

    def partitions(self) -> Sequence[Partition]:
        """All partitions.

        Raises:
            UnreachableError: it does not answer.
        """

    def accounts(self) -> Sequence[str]:
        """The accounts that this user may charge; empty if that is unknown.

        Raises:
            UnreachableError: it does not answer.
        """

    def submit(self, batch: ArrayRequest) -> str:
        """Submit a job array; returns its id. Its jobs are `ID_0`, `ID_1`...

        Raises:
            HeldBackError: a limit on the number of jobs is reached.
            RefusedError: the requested resources are not available.
            UnsureError: it is unknown whether the array was accepted.
        """

    def queue(self) -> Sequence[Job]:
        """All of this user's jobs that are pending, running, or ended recently.

        Raises:
            UnreachableError: it does not answer.
        """

    def history(self, arrays: Collection[str]) -> Sequence[Job]:
        """Every ended execution of these arrays' jobs, in order for each job; empty without accounting.

        A job that was requeued appears once for each time it ended.

        Raises:
            UnreachableError: it does not answer.
        """

    def find(self, names: Collection[str]) -> dict[str, str]:
        """The ids of the arrays with these names; names that were never accepted are missing.

        Raises:
            UnreachableError: it does not answer, so a name that is not found may still have been accepted.
        """

    def cancel(self, jobs: Collection[str]) -> None:
        """End pending jobs, and ask running ones to stop.

        Raises:
            UnreachableError: it does not answer.
        """

    def release(self, jobs: Collection[str]) -> None:
        """Release held jobs, so that they are pending again.

        Raises:
            UnreachableError: it does not answer.
        """
