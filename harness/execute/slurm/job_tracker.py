"""Track which job has which run, and how ended jobs ended, from the run folders, one squeue and one sacct."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from harness.base.exit_status import DISK_IS_FULL
from harness.execute.slurm.retry_policy import cause_of, ending_of, filled_the_disk, was_killed
from harness.execute.slurm.scheduler import Job, Scheduler, UnreachableError
from harness.execute.slurm.submission_log import Submission, SubmissionLog, load
from harness.planning.completeness import left_to_do
from harness.runs.folder import RunFolder
from harness.runs.record import AttemptStart, Cause
from harness.runs.store import Store

ADOPTION_S = 60.0
"""Timeout for finding a submission whose sbatch gave no answer; after it, the submission is withdrawn."""
PATIENCE_S = 900.0
"""Timeout for unreachable accounting; after it, a job that only accounting could know counts as lost."""
LAG_S = 10.0
"""How long to wait for a failed job's accounting: its exit code and the memory use of its steps show the cause."""


_OVER_MEMORY = re.compile(rb"exceeded (job |step )?memory limit|oom[-_ ]kill", re.IGNORECASE)
_OUTPUT_END = 1 << 16


@dataclass(frozen=True)
class TrackedJob:
    """A job that has, or had, a run."""

    submission: Submission
    task: int
    job: Job | None
    """None if the scheduler does not know the job: not accepted yet, or already forgotten."""

    @property
    def id(self) -> str:
        """The job's id; empty while it is unknown."""
        return self.submission.job(self.task) if self.submission.array else ""

    @property
    def is_leaving(self) -> bool:
        """Whether the user asked to cancel it. It keeps its runs until it has ended, but does not finish them."""
        return self.submission.was_cancelled(self.task)

    @property
    def runs(self) -> tuple[str, ...]:
        """The job's runs."""
        return self.submission.intent.tasks[self.task]

    def is_said_over_memory(self) -> bool:
        """Whether SLURM wrote into the end of the job's output that it ended a step for its memory use."""
        for file in self.submission.folder.glob(f"{self.id}_*_log.out"):
            with suppress(OSError), file.open("rb") as output:
                output.seek(max(0, file.stat().st_size - _OUTPUT_END))
                if _OVER_MEMORY.search(output.read()):
                    return True
        return False


def last_of(jobs: Sequence[TrackedJob]) -> TrackedJob:
    """Of the jobs that may have a run, the one submitted last. If its training and its evaluation are both there, the
    training, which comes first.

    Earlier ones have ended, even if accounting cannot tell yet: no run is submitted while a job has it.
    """

    def order(tracked: TrackedJob) -> tuple[str, bool]:
        intent = tracked.submission.intent
        return intent.training or intent.id, intent.phase != "evaluate"

    return max(jobs, key=order)


def has_local_process(folder: RunFolder) -> bool:
    """Whether a process that no job of SLURM started is executing a run."""
    if not folder.is_locked():
        return False
    begun = [one.start for one in folder.attempts.all() if one.start.host]  # the others tell of jobs that never started
    return not begun or not begun[-1].job


class JobTracker:
    """Tracks the jobs of all open submissions of a store."""

    def __init__(self, store: Store, submissions: SubmissionLog, scheduler: Scheduler) -> None:
        self._store, self._submissions, self._scheduler = store, submissions, scheduler
        self.active: dict[str, TrackedJob] = {}
        """By run: the pending or running job that has it."""
        self.finishing: set[str] = set()
        """Runs that have an accepted job which makes their record, not only one which trains them."""
        self.notes: tuple[str, ...] = ()
        self._recorded: set[str] = set()
        """Ids of ended jobs whose attempts all have a recorded cause."""
        self._silent_since: float | None = None
        self._failed_since: dict[str, float] = {}
        """When a job that failed for an unknown reason was first seen ended."""

    def look(self) -> dict[str, list[TrackedJob]]:
        """Query the scheduler, update `active`, and record the causes of ended attempts.

        Returns:
            By run: its jobs, the last one last, for runs all of whose jobs have ended.

        Raises:
            UnreachableError: the scheduler does not answer; `active` is unchanged.
        """
        self.notes = ()
        submissions = self._submissions.open()
        if not submissions:
            self.active, self.finishing = {}, set()
            return {}
        jobs = {job.id: job for job in self._scheduler.queue()}
        self._adopt([submission for submission in submissions if submission.array is None])
        tracked_by_run: dict[str, list[TrackedJob]] = defaultdict(list)
        over: list[TrackedJob] = []
        for submission in submissions:
            if submission.is_closed:
                continue
            settled = submission.settled()
            for task, runs in enumerate(submission.intent.tasks):
                tracked = TrackedJob(submission, task, jobs.get(submission.job(task)) if submission.array else None)
                if _is_over(tracked):
                    over.append(tracked)
                    # Its end has been handled, so only newer jobs count for its runs. A cancelled job is settled
                    # before it ends, and its end still has to be reported.
                    if task in settled and not tracked.is_leaving:
                        continue
                for run in runs:
                    tracked_by_run[run].append(tracked)
        pending = self._record_causes(over)
        self.active, self.finishing, ended = {}, set(), {}
        for run, some in tracked_by_run.items():
            # A job whose accounting is still awaited counts as active: a retry needs the cause first.
            living = [tracked for tracked in some if not _is_over(tracked) or tracked.id in pending]
            if living:
                self.active[run] = last_of(living)
                going = (tracked for tracked in living if tracked.id and not _is_over(tracked))
                if any(tracked.submission.intent.phase != "train" for tracked in going):
                    self.finishing.add(run)
            else:
                ended[run] = some
        return ended

    def add(self, submission: Submission) -> None:
        """Add the jobs of a submission that was just accepted."""
        for task, runs in enumerate(submission.intent.tasks):
            for run in runs:
                self.active.setdefault(run, TrackedJob(submission, task, None))
                if submission.intent.phase != "train":
                    self.finishing.add(run)

    def training(self, run: str) -> TrackedJob | None:
        """The job that trains a run."""
        tracked = self.active.get(run)
        return tracked if tracked is not None and tracked.submission.intent.phase != "evaluate" else None

    def settle(self, jobs: Iterable[TrackedJob]) -> None:
        """Mark ended jobs as handled, and close every submission whose jobs have all been handled."""
        touched = {}
        for tracked in jobs:
            touched[tracked.submission.intent.id] = tracked.submission
            # A job whose runs all have a record needs no mark: the records themselves show that it is handled.
            if not all(self._store.run(run).record_file.exists() for run in tracked.runs):
                tracked.submission.settle(tracked.task)
        living = {(tracked.submission.intent.id, tracked.task) for tracked in self.active.values()}
        for submission in touched.values():
            intent, settled = submission.intent, submission.settled()
            if not any(
                (intent.id, task) in living or (task not in settled and not self._is_done(runs))
                for task, runs in enumerate(intent.tasks)
            ):
                submission.close("all of its jobs have ended")

    def _is_done(self, runs: Sequence[str]) -> bool:
        return all(self._store.run(run).record_file.exists() for run in runs)

    def _adopt(self, unknown: Sequence[Submission]) -> None:
        """Search for submissions whose sbatch call was interrupted, and withdraw them if they are not found in time."""
        if not unknown:
            return
        found = self._scheduler.find([submission.intent.name for submission in unknown])
        for submission in unknown:
            name = submission.intent.name
            if name in found:
                submission.accept(found[name])
                self._note(f"{name} had already been submitted: found as job {found[name]}")
            elif time.time() - submission.intent.created_at > ADOPTION_S:
                submission.close("withdrawn: the scheduler does not know it")

    def _record_causes(self, over: Sequence[TrackedJob]) -> set[str]:
        """Record how the attempts of ended jobs ended; returns the ids of jobs whose accounting is still awaited."""
        unrecorded = [tracked for tracked in over if tracked.id not in self._recorded]
        lacking = {tracked.id: tracked for tracked in unrecorded if self._needs_history(tracked)}
        history, silent = self._history({tracked.submission.array or "" for tracked in lacking.values()})
        pending: set[str] = set()
        for tracked in unrecorded:
            accounted = history[tracked.id]
            executions = accounted or ([tracked.job] if tracked.job else [])
            unknown = tracked.id in lacking and self._is_awaited(tracked, accounted, silent)
            # A newer attempt, which tells of a job that never started, would stop the process that has its run by now.
            if unknown or any(has_local_process(self._store.run(run)) for run in tracked.runs):
                pending.add(tracked.id)
                continue
            self._record_ends(tracked, executions)
            self._recorded.add(tracked.id)
        return pending

    def _is_awaited(self, tracked: TrackedJob, accounted: Sequence[Job], silent: bool) -> bool:
        """Whether accounting may still tell how a job ended: it is silent, or the job failed so recently that its exit
        code may follow, or that memory was the cause. The queue alone knows neither.
        """
        if accounted:
            is_known = not was_killed(accounted[-1]) or cause_of(accounted[-1]) != "crashed"
        elif silent:
            return tracked.job is None or tracked.job.state == "FAILED"
        else:
            is_known = tracked.job is None or tracked.job.state != "FAILED" or not self._scheduler.limits().accounting
        if is_known:
            return False
        since = self._failed_since.setdefault(tracked.id, time.monotonic())
        return time.monotonic() - since < LAG_S

    def _needs_history(self, tracked: TrackedJob) -> bool:
        """Whether accounting is needed: an attempt wrote no exit record, or no attempt began.

        The queue alone does not show whether a job ran out of memory.
        """
        folders = [self._store.run(run) for run in tracked.runs]
        attempts = [
            attempt for folder in folders for attempt in folder.attempts.all() if attempt.start.job == tracked.id
        ]
        if any(attempt.end is None for attempt in attempts):
            return True
        return (tracked.job is None or not attempts) and any(map(left_to_do, folders))

    def _history(self, arrays: set[str]) -> tuple[dict[str, list[Job]], bool]:
        """Executions by job, and whether accounting does not answer but is still awaited."""
        found: dict[str, list[Job]] = defaultdict(list)
        if not arrays:
            return found, False
        try:
            for job in self._scheduler.history(arrays):
                found[job.id].append(job)
        except UnreachableError as error:
            self._silent_since = self._silent_since or time.monotonic()
            self._note(f"{error}: it is not known yet how some jobs ended")
            return found, time.monotonic() - self._silent_since < PATIENCE_S
        self._silent_since = None
        return found, False

    def _record_ends(self, tracked: TrackedJob, executions: Sequence[Job]) -> None:
        begun = False
        for run in tracked.runs:
            folder = self._store.run(run)
            for attempt in folder.attempts.all():
                if attempt.start.job == tracked.id:
                    begun = True
                    if attempt.end is None:
                        asked = tracked.submission.was_asked_to_leave(tracked.task, attempt.start.restart)
                        _record_end(folder, attempt.start, tracked, _execution(executions, attempt.start), asked)
        if not begun:
            self._record_never_started(tracked, executions[-1] if executions else None)

    def _record_never_started(self, tracked: TrackedJob, job: Job | None) -> None:
        """Record the cause for a job without attempts: cancelled while pending, or its node cannot see the store."""
        for run in tracked.runs:
            folder = self._store.run(run)
            left = left_to_do(folder)
            waited = tracked.submission.intent.phase == "evaluate" and left.training
            if waited or not left or not folder.path.exists():
                continue
            reported: Cause = "crashed" if job is None else _cause(tracked, job)
            if tracked.is_leaving:
                reported = "cancelled"
            elif reported == "cancelled" and self._lost_its_training(tracked):
                reported = "crashed"  # SLURM, not the user, cancelled it, because the job that it waited for failed
            cause: Cause = "never_started" if reported == "crashed" else reported
            folder.attempts.end(folder.attempts.begin(job=tracked.id), cause, _never_started(tracked, job, cause))

    def _lost_its_training(self, tracked: TrackedJob) -> bool:
        """Whether an evaluation job waited for a training job that has not completed all of its runs.

        A later job may have completed them since.
        """
        submission = tracked.submission
        if not submission.intent.training:
            return False
        job = load(submission.folder.parent / submission.intent.training).job(tracked.task)
        attempts = [one for run in tracked.runs for one in self._store.run(run).attempts.all() if one.start.job == job]
        return any(one.end is None or one.end.cause != "completed" for one in attempts)

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)


def _is_over(tracked: TrackedJob) -> bool:
    return tracked.submission.array is not None and (tracked.job is None or tracked.job.phase == "ended")


def _execution(executions: Sequence[Job], start: AttemptStart) -> Job | None:
    """The job's execution that made an attempt: the one with the attempt's restart count, else the last known one."""
    return executions[min(start.restart, len(executions) - 1)] if executions else None


def _cause(tracked: TrackedJob, job: Job) -> Cause:
    """As `cause_of`. Of a failed job, slurmstepd's line in its output counts too: accounts may lack its last use."""
    return "out_of_memory_host" if job.state == "FAILED" and tracked.is_said_over_memory() else cause_of(job)


def _record_end(
    folder: RunFolder, start: AttemptStart, tracked: TrackedJob, job: Job | None, asked_to_leave: bool
) -> None:
    step = folder.step
    newest = folder.attempts.newest()
    if start.number == newest and not left_to_do(folder):
        folder.attempts.end(start.number, "completed", "", step=step)
    elif job is None:
        # There is no exit record and no accounting. A job that SLURM signalled and never restarted was cancelled.
        cause: Cause = "cancelled" if asked_to_leave else "node_failure" if start.number < newest else "crashed"
        folder.attempts.end(start.number, cause, "its job ended without an exit record", step=step)
    else:
        cause = _cause(tracked, job)
        folder.attempts.end(start.number, cause, ending_of(job), step=step, ended_at=job.ended_at)


def _never_started(tracked: TrackedJob, job: Job | None, cause: Cause) -> str:
    if job is None:
        return f"job {tracked.id} left no record"
    if filled_the_disk(job):
        return DISK_IS_FULL
    exited = f"{job.state}, exit {job.reason}" if job.reason else job.state
    where = f" on {job.node} ({exited})" if job.node else f" ({exited})"
    if job.state == "CANCELLED":
        return f"job {tracked.id} was cancelled before any of its runs started"
    if cause != "never_started":
        return f"job {tracked.id} ended{where} before any of its runs started"
    fix = f"check that the node can read the store and Python; see {tracked.submission.folder}"
    return f"job {tracked.id} ended{where} before it started: {fix}"
