"""A store's runs that are in jobs of a cluster: query them, refuse to run them a second time, cancel them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from harness.base.errors import DispatchError
from harness.execute.slurm.client import Slurm
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob
from harness.execute.slurm.scheduler import Scheduler, UnreachableError
from harness.execute.slurm.submission_log import Intent, Submission, SubmissionLog
from harness.planning.completeness import left_to_do
from harness.planning.plan import Plan
from harness.runs.store import Store


@dataclass(frozen=True)
class Cancelled:
    """The result of a request to cancel jobs."""

    jobs: int = 0
    others: tuple[str, ...] = ()
    """Runs that were not named, but shared a cancelled job."""
    notes: tuple[str, ...] = ()
    """Messages for the user about jobs whose state is unknown."""
    pending: int = 0
    """Number of jobs whose scheduler did not answer. The request is on disk, and they stop when they read it."""


def look(store: Store) -> tuple[dict[str, TrackedJob], tuple[str, ...]]:
    """The active job of every run that has one, and notes. SLURM is not queried if no submission is open."""
    submissions = SubmissionLog(store)
    if not submissions.open():
        return {}, ()
    try:
        tracker = JobTracker(store, submissions, Slurm())
        with submissions.settling():
            tracker.look()
    except UnreachableError as error:
        return {}, (f"{error}: the states of jobs are unknown for now",)
    except DispatchError as error:
        return {}, (f"{error.what}: the states of jobs are unknown on this machine",)
    return tracker.active, tracker.notes


def refuse_what_jobs_have(runs: Collection[str], name: str, store: Store) -> None:
    """Raise DispatchError if some of the runs are in jobs of a cluster, because they must not run here as well."""
    active, _ = look(store)
    if mine := active.keys() & set(runs):
        fix = "continue with `--on` and their profile, or cancel them first with `harness cancel`"
        raise DispatchError(f"{len(mine)} runs of it are in jobs of SLURM", where=name, fix=fix)


def cancel_jobs(runs: Collection[str], store: Store) -> Cancelled:
    """Cancel the jobs of these runs. Running jobs write a checkpoint first.

    The request is on disk: commands that execute the runs, on any machine, do not start them again.
    """
    submissions = SubmissionLog(store)
    if not (opened := submissions.open()):
        return Cancelled()
    for folder in map(store.run, runs):
        if folder.path.is_dir() and left_to_do(folder):
            folder.cancel()
    active, notes = look(store)
    if notes and not active:  # the scheduler does not answer, or is not on this machine
        requested = _request_cancellation(opened, runs)
        return Cancelled(notes=notes, pending=requested)
    jobs = {job.id: job for run, job in active.items() if run in runs and job.id}
    if not jobs:
        return Cancelled(notes=notes)
    return _cancel(Slurm(), list(jobs.values()), runs, notes)


def vanished(plan: Plan, store: Store) -> list[str]:
    """Runs in jobs of this ablation that its spec no longer contains."""
    active, _ = look(store)
    ours = plan.runs.keys() | plan.left_out
    return [run for run, job in active.items() if run not in ours and is_of(job.submission.intent, plan)]


def is_of(intent: Intent, plan: Plan) -> bool:
    """Whether a submission is for the spec of `plan`, that is, for the same file with the same assignments."""
    return intent.ablation == plan.name and intent.origin == plan.origin


def _request_cancellation(submissions: Sequence[Submission], runs: Collection[str]) -> int:
    """Record on disk that every job with some of the runs has to stop; returns the number of these jobs."""
    requested = 0
    for submission in submissions:
        settled = submission.settled()
        for task, having in enumerate(submission.intent.tasks):
            if task not in settled and not set(having).isdisjoint(runs):
                submission.cancel(task)
                requested += 1
    return requested


def _cancel(
    scheduler: Scheduler, jobs: Sequence[TrackedJob], runs: Collection[str], notes: tuple[str, ...]
) -> Cancelled:
    for job in jobs:  # before scancel, so that a job that SLURM signals finds out that it was cancelled
        job.submission.cancel(job.task)
    others = tuple(sorted({run for job in jobs for run in job.runs} - set(runs)))
    try:
        scheduler.cancel([job.id for job in jobs])
    except UnreachableError as error:
        return Cancelled(0, others, (*notes, str(error)), len(jobs))
    return Cancelled(len(jobs), others, notes)
