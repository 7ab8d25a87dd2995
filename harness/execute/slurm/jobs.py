"""A store's runs that are in jobs of a cluster: query them, refuse to run them a second time, cancel them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from harness.base.errors import DispatchError
from harness.execute.slurm.client import Slurm
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob, last_of
from harness.execute.slurm.scheduler import UnreachableError
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
    """Number of jobs that SLURM was not told to cancel. The request is on disk, and they stop when they read it."""


def look(store: Store) -> tuple[dict[str, TrackedJob], tuple[str, ...]]:
    """The active job of every run that has one, and notes. SLURM is not queried if no submission is open.

    If it does not answer, every job whose end has not been handled counts as active.
    """
    submissions = SubmissionLog(store)
    if not (opened := submissions.open()):
        return {}, ()
    try:
        tracker = JobTracker(store, submissions, Slurm())
        with submissions.settling():
            tracker.look()
    except UnreachableError as error:
        return _believed(opened), (f"{error}: the states of jobs are unknown for now",)
    except DispatchError as error:
        return _believed(opened), (f"{error.what}: the states of jobs are unknown on this machine",)
    return tracker.active, tracker.notes


def _believed(submissions: Sequence[Submission]) -> dict[str, TrackedJob]:
    """By run: a job whose end has not been handled."""
    found: dict[str, list[TrackedJob]] = defaultdict(list)
    for submission in submissions:
        settled = submission.settled()
        for task, runs in enumerate(submission.intent.tasks):
            if task not in settled or submission.was_cancelled(task):
                for run in runs:
                    found[run].append(TrackedJob(submission, task, None))
    return {run: last_of(some) for run, some in found.items()}


def refuse_what_jobs_have(runs: Collection[str], name: str, store: Store) -> None:
    """Raise DispatchError if some of the runs are in jobs of a cluster, because they must not run here as well."""
    active, notes = look(store)
    having = {run: job for run, job in active.items() if run in runs and (job.job or not job.is_leaving)}
    if mine := [run for run in having if left_to_do(store.run(run))]:
        what = "are" if any(active[run].job for run in mine) else f"may be ({', '.join(notes)})"
        fix = "continue with `--on` and their profile, or cancel them first with `harness cancel`"
        raise DispatchError(f"{len(mine)} runs of it {what} in jobs of SLURM", where=name, fix=fix)


def cancel_jobs(runs: Collection[str], store: Store) -> Cancelled:
    """Cancel the jobs of these runs. Running jobs write a checkpoint first.

    The request is on disk: commands that execute the runs, on any machine, do not start them again.
    """
    if not (opened := SubmissionLog(store).open()):
        return Cancelled()
    for folder in map(store.run, runs):
        if left_to_do(folder):
            folder.cancel()
    active, notes = look(store)
    having = {(job.submission.intent.id, job.task): job for run, job in active.items() if run in runs}
    waiting = [  # the evaluations that wait for these jobs
        TrackedJob(submission, task, None)
        for submission in opened
        for (training, task) in having
        if submission.intent.training == training and task not in submission.settled()
    ]
    jobs = [*having.values(), *waiting]
    for job in jobs:  # before scancel, so that a job that SLURM signals finds out that it was cancelled
        job.submission.cancel(job.task)
    others = tuple(sorted({run for job in jobs for run in job.runs} - set(runs)))
    known = [job.id for job in jobs if job.id]
    try:
        if known:
            Slurm().cancel(known)
    except DispatchError as error:  # the scheduler does not answer, or is not on this machine
        return Cancelled(0, others, notes or (str(error),), len(jobs))
    return Cancelled(len(known), others, notes, len(jobs) - len(known))


def vanished(plan: Plan, active: Mapping[str, TrackedJob]) -> list[str]:
    """Runs in jobs of this ablation that its spec no longer contains."""
    ours = plan.runs.keys() | plan.left_out
    return [run for run, job in active.items() if run not in ours and is_of(job.submission.intent, plan)]


def is_of(intent: Intent, plan: Plan) -> bool:
    """Whether a submission is for the spec of `plan`, that is, for the same file with the same assignments."""
    return intent.ablation == plan.name and intent.origin == plan.origin
