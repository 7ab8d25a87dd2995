"""What jobs of a cluster have of a store's runs: looking, refusing what they have, cancelling."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from harness.base.errors import DispatchError
from harness.execute.slurm.client import Slurm
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob
from harness.execute.slurm.scheduler import Scheduler, UnreachableError
from harness.execute.slurm.submission_log import Intent, Submission, SubmissionLog
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
    pending: int = 0
    """Jobs that the scheduler could not be asked to cancel: the wish is on disk, and they leave when they see it."""


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
    submissions = SubmissionLog(store)
    if not (opened := submissions.open()):
        return Cancelled()
    active, notes = look(store)
    if notes and not active:  # the scheduler does not answer, or is not on this machine
        wished = _wish(opened, runs)
        return Cancelled(notes=notes, pending=wished)
    jobs = {job.id: job for run, job in active.items() if run in runs and job.id}
    if not jobs:
        return Cancelled(notes=notes)
    return _cancel(Slurm(), list(jobs.values()), runs, notes)


def vanished(plan: Plan, store: Store) -> list[str]:
    """Runs with jobs of this ablation that its spec no longer asks for."""
    active, _ = look(store)
    return [run for run, job in active.items() if run not in plan.runs and is_of(job.submission.intent, plan)]


def is_of(intent: Intent, plan: Plan) -> bool:
    """Whether a submission was made for the spec of `plan`: the same file with the same assignments."""
    return intent.ablation == plan.name and intent.origin == plan.origin


def _wish(submissions: Sequence[Submission], runs: Collection[str]) -> int:
    """Write down for every job that has some of the runs that it is to leave; how many there are."""
    wished = 0
    for submission in submissions:
        settled = submission.settled()
        for task, having in enumerate(submission.intent.tasks):
            if task not in settled and not set(having).isdisjoint(runs):
                submission.cancel(task)
                wished += 1
    return wished


def _cancel(
    scheduler: Scheduler, jobs: Sequence[TrackedJob], runs: Collection[str], notes: tuple[str, ...]
) -> Cancelled:
    for job in jobs:  # first, so that a job that is signalled knows why
        job.submission.cancel(job.task)
    others = tuple(sorted({run for job in jobs for run in job.runs} - set(runs)))
    try:
        scheduler.cancel([job.id for job in jobs])
    except UnreachableError as error:
        return Cancelled(0, others, (*notes, str(error)), len(jobs))
    return Cancelled(len(jobs), others, notes)
