"""What carries a plan out: the protocol of executors, and the snapshots that they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.runs.planned import PlannedRun
from harness.runs.record import Failure


@dataclass
class Progress:
    """A snapshot for whoever watches."""

    done: int
    total: int
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By run id: the run's progress.json."""
    failed: dict[str, Failure] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    """Runs that another living process works on."""
    waiting: int = 0
    """Runs whose jobs wait in a queue."""
    notes: tuple[str, ...] = ()
    """What a person should know."""


class Executor(Protocol):
    """Carries a plan out, with processes of this machine or with jobs of a cluster. The plan may grow meanwhile."""

    jobs: int
    """How many runs it carries out at a time, where somebody chooses them one by one."""

    def add(self, run: PlannedRun, until: int | None = None) -> None:
        """Carry out one more run, which the plan may not have had; its teacher has to be in the plan.

        Args:
            until: pause after that step, with a checkpoint; `add` it again to go on.
        """

    def pause(self, run_id: str, step: int) -> None:
        """Have a run that was added leave with a checkpoint after `step`, or at once if it is past that."""

    def is_open(self, run_id: str) -> bool:
        """Whether a run is still to be carried out, here or by another process."""

    def failure(self, run_id: str) -> Failure | None:
        """Why a run was given up; None if it was not."""

    def progress(self) -> Progress:
        """Where everything stands."""

    def run(self) -> Iterator[Progress]:
        """Carry the plan out; yields a snapshot a few times a second, and one at the end."""

    def stop(self) -> None:
        """Come to an end soon; what was begun can be gone on with."""
