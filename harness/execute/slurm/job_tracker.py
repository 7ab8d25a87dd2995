"""Which job has which run, and how jobs that are over ended: the run folders, then one squeue, then one sacct."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.execute.slurm.retry_policy import cause_of, was_killed
from harness.execute.slurm.scheduler import Job, Scheduler, UnreachableError
from harness.execute.slurm.submission_log import Submission, SubmissionLog
from harness.planning.completeness import is_complete
from harness.runs.record import AttemptStart, Cause
from harness.runs.store import RunFolder, Store

ADOPTION_S = 60.0
"""How long a submission that sbatch gave no answer to is looked for before it is withdrawn."""
PATIENCE_S = 900.0
"""How long a dead accounting is waited for before a job that it alone knows about is taken as lost."""
LAG_S = 10.0
"""How long a killed job's accounts may lag behind its end: what its steps held tells whether it was for memory."""


@dataclass(frozen=True)
class TrackedJob:
    """A job that has, or had, a run."""

    submission: Submission
    task: int
    job: Job | None
    """None where the scheduler does not know it: not accepted yet, or forgotten."""

    @property
    def id(self) -> str:
        """The job's id; empty while it is not known."""
        return self.submission.job(self.task) if self.submission.array else ""

    @property
    def is_leaving(self) -> bool:
        """Whether a person asked to cancel it: it has its runs until it has ended, and does not finish them."""
        return self.submission.was_cancelled(self.task)

    @property
    def runs(self) -> tuple[str, ...]:
        """The job's runs."""
        return self.submission.intent.tasks[self.task]


class JobTracker:
    """Looks at all open submissions of a store at once."""

    def __init__(self, store: Store, submissions: SubmissionLog, scheduler: Scheduler) -> None:
        self._store, self._submissions, self._scheduler = store, submissions, scheduler
        self.active: dict[str, TrackedJob] = {}
        """By run: the job that waits with it, or runs it."""
        self.notes: tuple[str, ...] = ()
        self._told: set[str] = set()
        """Jobs whose attempts all have their cause."""
        self._silent_since: float | None = None
        self._killed_since: dict[str, float] = {}
        """When jobs that were killed, nobody knows yet for what, were first seen ended."""

    def look(self) -> dict[str, TrackedJob]:
        """Look anew; returns the runs whose jobs are over, with the last of them, causes stated.

        Raises:
            UnreachableError: the scheduler does not answer; `active` is what it was.
        """
        self.notes = ()
        submissions = self._submissions.open()
        if not submissions:
            self.active = {}
            return {}
        jobs = {job.id: job for job in self._scheduler.queue()}
        self._adopt([submission for submission in submissions if submission.array is None])
        places: dict[str, list[TrackedJob]] = defaultdict(list)
        over: list[TrackedJob] = []
        for submission in submissions:
            if submission.is_closed:
                continue
            settled = submission.settled()
            for task, runs in enumerate(submission.intent.tasks):
                place = TrackedJob(submission, task, jobs.get(submission.job(task)) if submission.array else None)
                if _is_over(place):
                    over.append(place)
                    if task in settled and not place.is_leaving:
                        continue
                for run in runs:
                    places[run].append(place)
        pending = self._tell(over)
        self.active, ended = {}, {}
        for run, some in places.items():
            living = [place for place in some if not _is_over(place) or place.id in pending]
            if living:
                # Of a training and its evaluation, the one that comes next.
                self.active[run] = min(living, key=lambda place: place.submission.intent.phase == "evaluate")
            else:
                ended[run] = some[-1]
        return ended

    def add(self, submission: Submission) -> None:
        """A submission was accepted just now."""
        for task, runs in enumerate(submission.intent.tasks):
            for run in runs:
                self.active.setdefault(run, TrackedJob(submission, task, None))

    def training(self, run: str) -> TrackedJob | None:
        """The job that trains a run."""
        place = self.active.get(run)
        return place if place is not None and place.submission.intent.phase != "evaluate" else None

    def settle(self, places: Iterable[TrackedJob]) -> None:
        """Nothing more is to be done about these jobs; submissions of which that holds altogether are closed."""
        touched = {}
        for place in places:
            touched[place.submission.intent.id] = place.submission
            if not all(self._store.run(run).record_file.exists() for run in place.runs):
                place.submission.settle(place.task)
        living = {(place.submission.intent.id, place.task) for place in self.active.values()}
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
        """Find submissions whose sbatch was not heard to the end; those that never were are withdrawn in the end."""
        if not unknown:
            return
        found = self._scheduler.find([submission.intent.name for submission in unknown])
        for submission in unknown:
            name = submission.intent.name
            if name in found:
                submission.accept(found[name])
                self._note(f"{name} was submitted before: found again as job {found[name]}")
            elif time.time() - submission.intent.created_at > ADOPTION_S:
                submission.close("withdrawn: the scheduler does not know it")

    def _tell(self, over: Sequence[TrackedJob]) -> set[str]:
        """State how the attempts of jobs that are over ended; returns the jobs of which the accounts are waited for."""
        untold = [place for place in over if place.id not in self._told]
        lacking = {place.id: place for place in untold if self._needs_history(place)}
        history, silent = self._history({place.submission.array or "" for place in lacking.values()})
        pending: set[str] = set()
        for place in untold:
            executions = history.get(place.id, []) or ([place.job] if place.job else [])
            if place.id in lacking and ((silent and place.job is None) or self._lags(place, executions)):
                pending.add(place.id)
                continue
            self._tell_one(place, executions)
            self._told.add(place.id)
        return pending

    def _lags(self, place: TrackedJob, executions: Sequence[Job]) -> bool:
        """Whether a job was killed just now, and its accounts may say for what before long."""
        if not executions or not was_killed(executions[-1]) or cause_of(executions[-1]) != "crashed":
            return False
        since = self._killed_since.setdefault(place.id, time.monotonic())
        return time.monotonic() - since < LAG_S

    def _needs_history(self, place: TrackedJob) -> bool:
        """Whether an attempt left no word, or none began: the queue alone does not tell who ran out of memory."""
        folders = [self._store.run(run) for run in place.runs]
        attempts = [attempt for folder in folders for attempt in folder.attempts.all() if attempt.start.job == place.id]
        if any(attempt.end is None for attempt in attempts):
            return True
        return (place.job is None or not attempts) and not all(map(is_complete, folders))

    def _history(self, arrays: set[str]) -> tuple[dict[str, list[Job]], bool]:
        """Executions by job; and whether accounting is silent, and is still waited for."""
        found: dict[str, list[Job]] = defaultdict(list)
        if not arrays:
            return found, False
        try:
            for job in self._scheduler.history(arrays):
                found[job.id].append(job)
        except UnreachableError as error:
            self._silent_since = self._silent_since or time.monotonic()
            self._note(f"{error}: how some jobs ended is not known yet")
            return found, time.monotonic() - self._silent_since < PATIENCE_S
        self._silent_since = None
        return found, False

    def _tell_one(self, place: TrackedJob, executions: Sequence[Job]) -> None:
        begun = False
        for run in place.runs:
            folder = self._store.run(run)
            for attempt in folder.attempts.all():
                if attempt.start.job == place.id:
                    begun = True
                    if attempt.end is None:
                        asked = place.submission.was_asked_to_leave(place.task, attempt.start.restart)
                        _state(folder, attempt.start, _execution(executions, attempt.start), asked)
        if not begun:
            self._tell_never_started(place, executions[-1] if executions else None)

    def _tell_never_started(self, place: TrackedJob, job: Job | None) -> None:
        """No run of the job left a trace: it was cancelled while it waited, or its node cannot see the store."""
        for run in place.runs:
            folder = self._store.run(run)
            waited = place.submission.intent.phase == "evaluate" and not folder.weights.exists()
            if waited or is_complete(folder) or not folder.path.exists():
                continue
            told: Cause = "crashed" if job is None else cause_of(job)
            if place.is_leaving:
                told = "cancelled"
            elif told == "cancelled" and self._lost_its_training(place):
                told = "crashed"  # SLURM cancels what waits for a job that failed; no person did
            cause: Cause = "never_started" if told == "crashed" else told
            folder.attempts.end(folder.attempts.begin(job=place.id), cause, _never_started(place, job, cause))

    def _lost_its_training(self, place: TrackedJob) -> bool:
        """Whether a job that was to evaluate waited for one that has not completed all of its runs."""
        if not place.submission.intent.training:
            return False
        attempts = [self._store.run(run).attempts.all() for run in place.runs]
        return any(one[-1].end is None or one[-1].end.cause != "completed" for one in attempts if one)

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)


def _is_over(place: TrackedJob) -> bool:
    return place.submission.array is not None and (place.job is None or place.job.phase == "ended")


def _execution(executions: Sequence[Job], start: AttemptStart) -> Job | None:
    """The execution of the job that made an attempt: by how often it had been queued again, or the last known."""
    return executions[min(start.restart, len(executions) - 1)] if executions else None


def _state(folder: RunFolder, start: AttemptStart, job: Job | None, asked_to_leave: bool) -> None:
    step = int(folder.read_progress().get("step", 0))
    newest = folder.attempts.newest()
    if start.number == newest and is_complete(folder):
        folder.attempts.end(start.number, "completed", "", step=step)
    elif job is None:
        # It left no word and nobody counted. A job that was asked to leave and never started again was cancelled.
        cause: Cause = "cancelled" if asked_to_leave else "node_failure" if start.number < newest else "crashed"
        folder.attempts.end(start.number, cause, "its job ended without a word", step=step)
    else:
        cause = cause_of(job)
        message = f"SLURM says {job.state} (exit {job.reason})" if job.reason else f"SLURM says {job.state}"
        folder.attempts.end(start.number, cause, message, step=step, ended_at=job.ended_at)


def _never_started(place: TrackedJob, job: Job | None, cause: Cause) -> str:
    if job is None:
        return f"job {place.id} left no trace"
    where = f" on {job.node}" if job.node else ""
    if job.state == "CANCELLED":
        return f"job {place.id} was cancelled before a run of it began"
    if cause != "never_started":
        return f"job {place.id} ended{where} ({job.state}) before a run of it began"
    look = f"see {place.submission.folder}"
    return f"job {place.id} ended{where} ({job.state}) before it began: can that node see the store and Python? {look}"
