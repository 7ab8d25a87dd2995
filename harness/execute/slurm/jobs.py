"""What jobs of a cluster have of a store's runs: looking, refusing what they have, cancelling."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from harness.base.errors import DispatchError
from harness.execute.slurm.client import Slurm
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob
from harness.execute.slurm.scheduler import Scheduler, UnreachableError
from harness.execute.slurm.submission_log import SubmissionLog
from harness.planning.plan import Plan
from harness.runs.store import Store


@dataclass(frozen=True)
class Cancelled:
    """What became of a wish to cancel jobs."""

    jobs: int = 0
    others: tuple[str, ...] = ()
    """Runs that nobody asked to cancel, but that shared these jobs."""
    notes: tuple[str, ...] = ()
    """What is not known about jobs."""


def look(store: Store) -> tuple[dict[str, TrackedJob], tuple[str, ...]]:
    """The job of every run that has one, and notes; nothing is asked where no submission is open."""
    submissions = SubmissionLog(store)
    if not submissions.open():
        return {}, ()
    try:
        tracker = JobTracker(store, submissions, Slurm())
        with submissions.settling():
            tracker.look()
    except UnreachableError as error:
        return {}, (f"{error}: the states of jobs are not known for now",)
    except DispatchError as error:
        return {}, (f"{error.what}: the states of jobs are not known here",)
    return tracker.active, tracker.notes


def refuse_what_jobs_have(runs: Collection[str], name: str, store: Store) -> None:
    """Raise DispatchError if jobs of a cluster have some of the runs: they must not run here as well."""
    active, _ = look(store)
    if mine := active.keys() & set(runs):
        fix = "go on with `--on` their profile, or cancel them first with `harness cancel`"
        raise DispatchError(f"{len(mine)} runs of it are in jobs of SLURM", where=name, fix=fix)


def cancel_jobs(runs: Collection[str], store: Store) -> Cancelled:
    """Cancel the jobs of these runs; running ones write a checkpoint first."""
    active, notes = look(store)
    jobs = {job.id: job for run, job in active.items() if run in runs and job.id}
    if not jobs:
        return Cancelled(notes=notes)
    return _cancel(Slurm(), list(jobs.values()), runs, notes)


def vanished(plan: Plan, store: Store) -> list[str]:
    """Runs with jobs of this ablation that its spec no longer asks for."""
    active, _ = look(store)
    return [run for run, job in active.items() if run not in plan.runs and job.submission.intent.ablation == plan.name]


def _cancel(
    scheduler: Scheduler, jobs: Sequence[TrackedJob], runs: Collection[str], notes: tuple[str, ...]
) -> Cancelled:
    for job in jobs:  # first, so that a job that is signalled knows why
        job.submission.settle(job.task)
    scheduler.cancel([job.id for job in jobs])
    others = sorted({run for job in jobs for run in job.runs} - set(runs))
    return Cancelled(len(jobs), tuple(others), notes)
