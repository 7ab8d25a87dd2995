"""The GPU-hours of an ablation: hours used, hours reserved for jobs, and how many jobs a budget still allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.config.profile import JobResources
from harness.execute.slurm.submission_log import Submission
from harness.planning.completeness import left_to_do
from harness.planning.plan import Plan
from harness.runs.attempts import Attempt
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.store import Store

SLACK = 1.5
"""A job's allowance is this multiple of its predicted hours."""


@dataclass(frozen=True)
class Used:
    """Hours that attempts have used."""

    gpu_hours: float = 0.0
    core_hours: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(self.gpu_hours + other.gpu_hours, self.core_hours + other.core_hours)


def used(folder: RunFolder) -> Used:
    """Hours that all attempts at a run have used so far, each measured with its own node's clock."""
    return held(folder, folder.attempts.all())


def held(folder: RunFolder, attempts: Iterable[Attempt]) -> Used:
    """Hours that these attempts at the run in `folder` have used so far."""
    return sum((_of(attempt, folder) for attempt in attempts), Used())


def _of(attempt: Attempt, folder: RunFolder) -> Used:
    ended = attempt.end.ended_at if attempt.end else _last_progress(folder, attempt)
    hours = max(ended - attempt.start.started_at, 0.0) / 3600 if attempt.start.started_at else 0.0
    return Used(hours * attempt.start.gpus, hours * attempt.start.cores)


def _last_progress(folder: RunFolder, attempt: Attempt) -> float:
    """When an attempt without an end last wrote its progress."""
    at = folder.read_progress()
    started = attempt.start.started_at
    return float(at.get("time", started)) if at.get("attempt") == attempt.start.number else started


class GpuHourBudget:
    """The budget of one plan, from `--max-gpu-hours`.

    Every job gets an allowance of GPU-hours, which its supervisor on the node enforces. The allowances together never
    exceed the budget, so the budget holds even if no command watches the jobs.
    """

    def __init__(self, gpu_hours: float, plan: Plan, store: Store, predicted: dict[str, float]) -> None:
        """`predicted`: predicted hours of each run, for runs where a prediction exists."""
        self.gpu_hours = gpu_hours
        self._plan, self._store, self._predicted = plan, store, predicted

    def used(self) -> float:
        """GPU-hours that the plan's runs have used so far."""
        return sum(used(self._store.run(run)).gpu_hours for run in self._plan.runs)

    def allowance(self, task: Sequence[PlannedRun], resources: JobResources) -> float:
        """A job's allowance in GPU-hours: 1.5 times its runs' predicted hours or, if a prediction is missing, the
        hours of one job that lasts until its time limit.
        """
        limit = resources.gpus * resources.time_limit_min / 60
        known = [self._predicted[run.id] for run in task if run.id in self._predicted]
        return SLACK * resources.gpus * sum(known) if len(known) == len(task) else limit

    def affordable(
        self, tasks: Sequence[list[PlannedRun]], asked: Sequence[JobResources], open_: Iterable[Submission]
    ) -> int:
        """How many of these jobs, counted from the first, fit into the budget.

        Args:
            asked: the resources of a task's jobs: its training, and its evaluation if that is a separate job.
            open_: the submissions that are not closed.
        """
        left = self.gpu_hours - self.used() - self._reserved(open_)
        each = max((sum(self.allowance(task, one) for one in asked) for task in tasks), default=0.0)
        return len(tasks) if not each else max(min(int(left / each), len(tasks)), 0)

    def _reserved(self, submissions: Iterable[Submission]) -> float:
        """GPU-hours that unfinished jobs may still use."""
        total = 0.0
        for submission in submissions:
            settled = submission.settled()
            for task, runs in enumerate(submission.intent.tasks):
                mine = [run for run in runs if run in self._plan.runs and left_to_do(self._store.run(run))]
                if task not in settled and mine:
                    spent = sum(used(self._store.run(run)).gpu_hours for run in mine)
                    total += max((submission.intent.allowance_gpu_hours or 0.0) - spent, 0.0)
        return total
