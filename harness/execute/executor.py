"""The protocol of a plan's executors, the decisions that they share, and the progress snapshots that they yield."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.config.experiment import Experiment
from harness.config.overrides import laid_over
from harness.execute.life import Action, Decision, Facts, Life, decide
from harness.planning.completeness import Completeness, Missing
from harness.planning.plan import Plan
from harness.runs.attempts import Attempt
from harness.runs.planned import PlannedRun
from harness.runs.record import Failure
from harness.runs.settings import Settings
from harness.runs.store import Store


@dataclass
class Progress:
    """A snapshot of a plan's execution, for display."""

    done: int
    total: int
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Contents of each running run's progress.json, by run id."""
    failed: dict[str, Failure] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    """Runs that another live process is executing."""
    waiting: int = 0
    """Number of runs whose jobs are pending in the queue."""
    notes: tuple[str, ...] = ()
    """Messages for the user."""


class Decisions:
    """The runs of a plan that an executor has not closed, those that it gave up, and what it decides about them."""

    def __init__(self, plan: Plan, store: Store, settings: Settings) -> None:
        self._plan, self._store = plan, store
        self._completeness = Completeness(store, settings)
        self._open = set(plan.runs)
        self._failed: dict[str, Failure] = {}
        self._starts: dict[str, tuple[Missing, int, int]] = {}
        """By run: what was missing at its last start, from which step, and how often it was started so."""

    def is_open(self, run_id: str) -> bool:
        """Whether a run is unfinished and not given up; this process or another one will execute it."""
        return run_id in self._open

    def failure(self, run_id: str) -> Failure | None:
        """Why a run was given up; None if it was not."""
        return self._failed.get(run_id)

    def _apply(self, run: PlannedRun, facts: Facts) -> Decision:
        """Decide about a run, and close it if nothing more is to be done."""
        decision = decide(facts)
        if decision.action in (Action.NONE, Action.GIVE_UP):
            self._open.discard(run.id)
        if decision.failure is not None:
            self._failed[run.id] = decision.failure
        return decision

    def _count_start(self, run_id: str, left: Missing) -> None:
        step = self._store.run(run_id).step
        self._starts[run_id] = (left, step, self._starts_of(run_id, left, step) + 1)

    def _starts_of(self, run_id: str, left: Missing, step: int) -> int:
        """How often this command has started the run for the same missing work from the same step."""
        before, at, times = self._starts.get(run_id, (left, step, 0))
        return times if (before, at) == (left, step) else 0

    def _teacher(self, run: PlannedRun) -> tuple[Life, str]:
        """State of the run's teacher, and why it failed."""
        if run.teacher is None or self._store.run(run.teacher).weights.exists():
            return Life.DONE, ""
        if (failure := self._failed.get(run.teacher)) is not None:
            return Life.FAILED, f"its teacher, run {run.teacher}, failed: {failure.message}"
        return (Life.PENDING if run.teacher in self._open else Life.DONE), ""


class Executor(Protocol):
    """Carries out a plan with processes of this machine or jobs of a cluster. Runs may be added while it works."""

    jobs: int
    """How many runs a search that adds runs one at a time should keep in progress."""

    def add(self, run: PlannedRun, until: int | None = None) -> None:
        """Carry out one more run, which may be new to the plan. Its teacher must already be in the plan.

        Args:
            until: write a checkpoint and pause after this step; call `add` again to continue.
        """

    def pause(self, run_id: str, step: int) -> None:
        """Have an added run write a checkpoint and pause after `step`, or at once if it has passed that step."""

    def is_open(self, run_id: str) -> bool:
        """Whether a run is unfinished and not given up; this process or another one will execute it."""

    def failure(self, run_id: str) -> Failure | None:
        """Why a run was given up; None if it was not."""

    def progress(self) -> Progress:
        """The current state of all runs."""

    def run(self) -> Iterator[Progress]:
        """Carry out the plan. Yields a snapshot a few times a second, and a last one at the end."""

    def stop(self) -> None:
        """Ask `run` to end soon. Unfinished runs can be resumed later."""


def fitted(experiment: Experiment, attempts: Sequence[Attempt], processes: int) -> Experiment:
    """Halve the experiment's micro-batch, or more, once for each attempt that ran out of GPU memory.

    The global batch size stays the same: more micro-batches are accumulated, which does not change the run's identity.
    """
    stated, whole = experiment.resources.micro_batch_size, experiment.train.global_batch_size // processes
    times = sum(attempt.end is not None and attempt.end.cause == "out_of_memory_gpu" for attempt in attempts)
    together = experiment.train.virtual_batch_size or 1
    sizes = [size for size in range(whole, 0, -1) if whole % size == 0 and size % together == 0]
    micro = whole if stated == "auto" else stated
    for _ in range(times):
        micro = next((size for size in sizes if size <= micro // 2), micro)
    return laid_over(experiment, {"resources": {"micro_batch_size": micro}}) if times else experiment
