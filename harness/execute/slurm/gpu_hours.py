"""The GPU-hours of an ablation: used so far, promised to jobs, and what a budget still allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.config.profile import JobResources
from harness.execute.slurm.submission_log import Submission
from harness.planning.plan import Plan
from harness.runs.attempts import Attempt
from harness.runs.planned import PlannedRun
from harness.runs.store import RunFolder, Store

SLACK = 1.5
"""A job is promised this multiple of what it is predicted to take."""


@dataclass(frozen=True)
class Used:
    """What attempts held."""

    gpu_hours: float = 0.0
    core_hours: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(self.gpu_hours + other.gpu_hours, self.core_hours + other.core_hours)


def used(folder: RunFolder) -> Used:
    """What all attempts at a run have held so far, each by its own node's clock."""
    return held(folder, folder.attempts.all())


def held(folder: RunFolder, attempts: Iterable[Attempt]) -> Used:
    """What these attempts at the run in `folder` have held so far."""
    return sum((_of(attempt, folder) for attempt in attempts), Used())


def _of(attempt: Attempt, folder: RunFolder) -> Used:
    ended = attempt.end.ended_at if attempt.end else _last_sign(folder, attempt)
    hours = max(ended - attempt.start.started_at, 0.0) / 3600 if attempt.start.started_at else 0.0
    return Used(hours * attempt.start.gpus, hours * attempt.start.cores)


def _last_sign(folder: RunFolder, attempt: Attempt) -> float:
    """When an attempt without an end was last heard of."""
    at = folder.read_progress()
    started = attempt.start.started_at
    return float(at.get("time", started)) if at.get("attempt") == attempt.start.number else started


class GpuHourBudget:
    """What may be spent on one plan, by `--max-gpu-hours`.

    Every job is promised GPU-hours that it cannot exceed (its node sees to that), and no more are promised than there
    are: so the budget holds though nobody watches.
    """

    def __init__(self, gpu_hours: float, plan: Plan, store: Store, predicted: dict[str, float]) -> None:
        """`predicted`: hours that each run is expected to take, where that is known."""
        self.gpu_hours = gpu_hours
        self._plan, self._store, self._predicted = plan, store, predicted

    def used(self) -> float:
        """GPU-hours used by the plan's runs so far."""
        return sum(used(self._store.run(run)).gpu_hours for run in self._plan.runs)

    def allowance(self, task: Sequence[PlannedRun], resources: JobResources) -> float:
        """GPU-hours that a job is promised: what its runs are predicted to take and half as much again, or one run of
        the time limit where nothing is known.
        """
        limit = resources.gpus * resources.time_limit_min / 60
        known = [self._predicted[run.id] for run in task if run.id in self._predicted]
        return SLACK * resources.gpus * sum(known) if len(known) == len(task) else limit

    def affordable(
        self, tasks: Sequence[list[PlannedRun]], asked: Sequence[JobResources], open_: Iterable[Submission]
    ) -> int:
        """How many of these jobs, from the first, can be promised their hours.

        Args:
            asked: what a task's jobs ask for: of its training, and of its evaluation where that is a job of its own.
            open_: the submissions that are not closed.
        """
        left = self.gpu_hours - self.used() - self._promised(open_)
        each = max((sum(self.allowance(task, one) for one in asked) for task in tasks), default=0.0)
        return len(tasks) if not each else max(min(int(left / each), len(tasks)), 0)

    def _promised(self, submissions: Iterable[Submission]) -> float:
        """What jobs that are not over may still use."""
        total = 0.0
        for submission in submissions:
            settled = submission.settled()
            for task, runs in enumerate(submission.intent.tasks):
                mine = [run for run in runs if run in self._plan.runs and not self._is_over(run)]
                if task not in settled and mine:
                    spent = sum(used(self._store.run(run)).gpu_hours for run in mine)
                    total += max((submission.intent.allowance_gpu_hours or 0.0) - spent, 0.0)
        return total

    def _is_over(self, run: str) -> bool:
        return self._store.run(run).record_file.exists()
