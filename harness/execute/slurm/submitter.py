"""Submit missing runs. Runs that need the same resources share a job array, and each submission is logged first."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.base.errors import DispatchError
from harness.config.profile import JobResources, Profile
from harness.execute.executor import fitted
from harness.execute.life import Action
from harness.execute.slurm.gpu_hours import GpuHourBudget
from harness.execute.slurm.job_tracker import JobTracker
from harness.execute.slurm.retry_policy import resources_for
from harness.execute.slurm.scheduler import (
    ArrayRequest,
    HeldBackError,
    RefusedError,
    Scheduler,
    UnreachableError,
    UnsureError,
)
from harness.execute.slurm.submission_log import Intent, Phase, Submission, SubmissionLog
from harness.planning.plan import Plan
from harness.runs.planned import PlannedRun
from harness.runs.request import Request
from harness.runs.settings import Settings
from harness.runs.store import Store

MANY_TEACHERS = 16
"""With more teachers than this, every student waits for all of them, to avoid one array per teacher."""
WRITERS = 16
"""Number of threads that prepare run folders. On a network file system, each write is a round trip."""


@dataclass
class _Group:
    """Runs with the same phase, resources and dependencies, which share a job array."""

    phase: Phase
    resources: JobResources
    after: tuple[str, ...]
    runs: list[PlannedRun] = field(default_factory=list)


class Submitter:
    """Submits runs of one ablation with one profile."""

    def __init__(
        self, plan: Plan, settings: Settings, profile: Profile, scheduler: Scheduler, tracker: JobTracker
    ) -> None:
        self._plan, self._settings, self._profile = plan, settings, profile
        self._scheduler, self._tracker = scheduler, tracker
        self._store = Store(settings.store)
        self._submissions = SubmissionLog(self._store)
        self.budget: GpuHourBudget | None = None
        self.since: dict[str, int] = {}
        """By run that this command submits: the last attempt that the retry policy ignores."""
        self.until: dict[str, int | None] = {}
        """By run: the step after which it has to pause; None to train to the end."""
        self.held_back = 0
        """Number of jobs that were not submitted because the budget was not enough."""

    def submit(self, runs: Iterable[tuple[PlannedRun, Action]], unfinished: Collection[str], code: Path) -> None:
        """Submit `runs`.

        Args:
            runs: each with what is to be done, TRAIN or EVALUATE.
            unfinished: runs that are not done yet; a student waits for its teacher's job if the teacher is among them.
            code: the code snapshot that the jobs run.

        Raises:
            HeldBackError: a limit on the number of jobs is reached; some runs may have been submitted.
            RefusedError: SLURM refuses the profile's resources.
            UnsureError, UnreachableError: SLURM does not answer; later cycles search for what it may have accepted.
        """
        for group in self._groups(runs, unfinished):
            self._submit_group(group, code)

    def _groups(self, runs: Iterable[tuple[PlannedRun, Action]], unfinished: Collection[str]) -> list[_Group]:
        groups: dict[tuple[Phase, JobResources, tuple[str, ...]], _Group] = {}
        ready = [
            (run, action, () if action is Action.EVALUATE else self._after(run, unfinished)) for run, action in runs
        ]
        distinct = {after for _, _, after in ready if after}
        merged = tuple(sorted({job.partition("_")[0] for after in distinct for job in after}))
        for run, action, after in ready:
            if after and len(distinct) > MANY_TEACHERS:
                after = merged
            phase, resources = self._needs(run, action)
            key = (phase, resources, after)
            groups.setdefault(key, _Group(phase, resources, after)).runs.append(run)
        return list(groups.values())

    def _submit_group(self, group: _Group, code: Path) -> None:
        """Submit a group as one array, or as several if it is too large. If a job limit rejects an array, retry with
        half its size.
        """
        pack = self._profile.pack
        tasks = [group.runs[start : start + pack] for start in range(0, len(group.runs), pack)]
        size = min(self._scheduler.limits().max_array, len(tasks))
        while tasks:
            part = self._affordable(tasks[:size], group)
            if not part:
                self.held_back += len(tasks)
                return
            try:
                self._submit_array(group, part, code)
            except HeldBackError:
                if size == 1:
                    raise
                size = max(size // 2, 1)
                continue
            tasks = tasks[len(part) :]

    def _affordable(self, tasks: list[list[PlannedRun]], group: _Group) -> list[list[PlannedRun]]:
        if self.budget is None:
            return tasks
        asked = [group.resources]
        if group.phase == "train" and self._profile.evaluation is not None:
            asked.append(self._profile.evaluation)
        return tasks[: self.budget.affordable(tasks, asked, self._submissions.open())]

    def _submit_array(self, group: _Group, tasks: list[list[PlannedRun]], code: Path) -> None:
        submission = self._write_ahead(group.phase, group.resources, tasks, code)
        self._send(submission, group.after)
        if group.phase == "train" and self._profile.evaluation is not None:
            follower = self._write_ahead("evaluate", self._profile.evaluation, tasks, code, submission)
            with suppress(HeldBackError):  # in that case the evaluation is submitted once training has ended
                self._send(follower, (), corresponding=submission.array)

    def _write_ahead(
        self,
        phase: Phase,
        resources: JobResources,
        tasks: Sequence[Sequence[PlannedRun]],
        code: Path,
        training: Submission | None = None,
    ) -> Submission:
        """Write everything that the jobs will read to disk, before the scheduler is called."""
        allowance = self.budget.allowance(tasks[0], resources) if self.budget else None
        intent = Intent.of(
            self._plan.name,
            phase,
            [[run.id for run in task] for task in tasks],
            resources=resources,
            profile=self._profile,
            store=self._store.root.resolve(),
            code=code.resolve(),
            allowance_gpu_hours=allowance,
            origin=self._plan.origin,
            training=training.intent.id if training else "",
        )
        if training is None:
            runs = [run for task in tasks for run in task]
            with ThreadPoolExecutor(WRITERS) as writers:
                list(writers.map(lambda run: self._prepare(run, intent), runs))
        return self._submissions.add(intent)

    def _prepare(self, run: PlannedRun, intent: Intent) -> None:
        folder = self._store.run(run.id)
        since = self.since.get(run.id)
        since, attempts = (folder.attempts.newest(), []) if since is None else (since, folder.attempts.since(since))
        # An attempt that completed was made for another request, or did what it was asked for.
        completed = [one.start.number for one in attempts if one.end is not None and one.end.cause == "completed"]
        since = self.since[run.id] = max(completed, default=since)
        attempts = [one for one in attempts if one.start.number > since]
        experiment = fitted(run.experiment, attempts, intent.resources.processes)
        settings = Settings.model_validate({**dict(self._settings), "store": intent.store})
        request = Request.of(experiment, run.id, run.teacher, settings, intent.resources.cpus_per_task)
        folder.prepare(
            run.identity, request.written() | {"submission": intent.id, "since": since, "phase": intent.phase}
        )
        folder.pause_at(self.until.get(run.id))

    def _send(self, submission: Submission, after: tuple[str, ...], corresponding: str | None = None) -> None:
        """Hand a submission to the scheduler.

        Raises:
            HeldBackError, RefusedError: it was not accepted and is withdrawn.
            UnsureError: it may have been accepted; the next cycles search for it.
        """
        try:
            array = self._scheduler.submit(batch_of(submission, after, corresponding))
        except DispatchError as error:
            # Despite the error, the scheduler may have accepted the array: sbatch may have timed out after the
            # controller took it. Search by name, because submitting it again would run the jobs twice.
            try:
                found = self._scheduler.find([submission.intent.name])
            except UnreachableError as silent:
                fix = "the harness will search for the job by its name"
                raise UnsureError(error.what, where=submission.intent.name, fix=fix) from silent
            if submission.intent.name not in found:
                if isinstance(error, HeldBackError | RefusedError):
                    submission.close(f"withdrawn: {error}")
                raise
            array = found[submission.intent.name]
        submission.accept(array)
        self._tracker.add(submission)

    def _after(self, run: PlannedRun, unfinished: Collection[str]) -> tuple[str, ...]:
        if run.teacher is None or run.teacher not in unfinished:
            return ()
        if self._store.run(run.teacher).weights.exists():
            return ()
        tracked = self._tracker.training(run.teacher)
        return (tracked.id,) if tracked is not None and tracked.id else ()

    def _needs(self, run: PlannedRun, action: Action) -> tuple[Phase, JobResources]:
        folder, profile = self._store.run(run.id), self._profile
        phase: Phase = "run" if profile.evaluation is None else "evaluate" if action is Action.EVALUATE else "train"
        asked = profile.evaluation if phase == "evaluate" and profile.evaluation else profile.resources
        since = self.since.get(run.id)
        return phase, asked if since is None else resources_for(folder.attempts.since(since), asked, profile.retry)


def batch_of(submission: Submission, after: tuple[str, ...] = (), corresponding: str | None = None) -> ArrayRequest:
    """Build the scheduler's request for a submission."""
    intent = submission.intent
    return ArrayRequest(
        name=intent.name,
        folder=submission.folder.resolve(),
        command=command_of(intent, submission),
        tasks=len(intent.tasks),
        resources=intent.resources,
        profile=intent.profile,
        after=after,
        corresponding=corresponding,
    )


def command_of(intent: Intent, submission: Submission) -> str:
    """The shell command of a job. It puts the code snapshot first on sys.path and leaves the working folder out."""
    python = intent.profile.python or shlex.quote(sys.executable)
    code, folder = shlex.quote(str(intent.code.resolve())), shlex.quote(str(submission.folder.resolve()))
    path = f'PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return f"env PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 {path} {python} -m harness.execute.slurm.node {folder}"
