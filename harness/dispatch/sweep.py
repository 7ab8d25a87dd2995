"""Carry a plan out on a cluster: submit what is missing, look where it stands, try again what died.

Everything that counts is on disk, so that any command on any login node goes on from where things are, and none has to
stay alive: jobs end well by themselves. Each cycle reads the run folders first, then asks the scheduler once for all
jobs. A scheduler that does not answer means that nothing is known, and nothing is done.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harness.dispatch.budget import Budget
from harness.dispatch.conduct import Progress
from harness.dispatch.placement import Place, Placements
from harness.dispatch.policy import fitted, hopeless, resources_for
from harness.dispatch.scheduler import Batch, HeldBackError, RefusedError, Scheduler, UnreachableError, UnsureError
from harness.dispatch.snapshot import snapshot
from harness.dispatch.submissions import Intent, Phase, Submission, Submissions
from harness.errors import DispatchError
from harness.fence import Attempt
from harness.plan import Plan, PlannedRun
from harness.record import Failure
from harness.request import Request, is_complete, read_request
from harness.settings import Settings
from harness.spec.profile import Profile, Resources
from harness.store import RunFolder, Store

FASTEST_S, SLOWEST_S = 1.0, 30.0
"""Between cycles: fast while things change, slower and slower while they do not."""
LAST_LOOKS = 15
MANY_TEACHERS = 16
"""With more, students wait for all of them, lest there be an array for each."""
WRITERS = 16
"""Threads that prepare run folders: on a network file system each write is a round trip."""


@dataclass
class _Group:
    """Runs that ask for the same and so go into one array."""

    phase: Phase
    resources: Resources
    after: tuple[str, ...]
    runs: list[PlannedRun] = field(default_factory=list)


class Sweep:
    """Carries one plan out with one profile."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        settings: Settings,
        profile: Profile,
        scheduler: Scheduler,
        budget: Budget | None = None,
    ) -> None:
        self._plan, self._store, self._settings = plan, store, settings
        self._profile, self._scheduler = profile, scheduler
        self._submissions = Submissions(store)
        self._placements = Placements(store, self._submissions, scheduler)
        self._budget = budget
        self._open = {run.id for run in plan.runs.values() if not self._complete(run)}
        self._failed: dict[str, Failure] = {}
        self._since: dict[str, int] = {}
        """By run that this command submits: attempts before do not count."""
        self._notes: tuple[str, ...] = ()
        self._held_until, self._held_for_s = 0.0, FASTEST_S
        self._watched: set[str] = set()
        """Runs that this command has seen in the hands of a job."""
        self._stopping = False

    def progress(self) -> Progress:
        """Where everything stands."""
        running = {
            run: self._store.run(run).read_progress()
            for run, place in self._placements.active.items()
            if run in self._open and place.job is not None and place.job.phase == "running"
        }
        total = len(self._plan.runs)
        waiting = len(self._open & self._placements.active.keys()) - len(running)
        done = total - len(self._open) - len(self._failed)
        return Progress(done, total, running, dict(self._failed), (), waiting, self._notes)

    def conduct(self) -> Iterator[Progress]:
        """Cycle until every run is done or failed; yields a snapshot after each cycle and while it waits."""
        pause, before = FASTEST_S, self._signature()
        while self._open and not self._stopping:
            self.cycle()
            yield self.progress()
            after = self._signature()
            pause = FASTEST_S if after != before else min(pause * 1.5, SLOWEST_S)
            before = after
            until = time.monotonic() + pause
            while self._open and not self._stopping and time.monotonic() < until:
                time.sleep(min(FASTEST_S, pause))
                yield self.progress()
        yield self.progress()

    def wrap_up(self) -> None:
        """Look until the jobs of finished runs are over too, a little while: each attempt has its cause then."""
        for number in range(LAST_LOOKS):
            mine = [one for one in self._submissions.open() if one.intent.ablation == self._plan.name]
            if self._stopping or not mine or self._open:
                return
            if number:
                time.sleep(FASTEST_S)
            self.cycle()

    def stop(self) -> None:
        """Leave; jobs go on."""
        self._stopping = True

    @property
    def is_submitted(self) -> bool:
        """Whether every open run is in a job's hands."""
        return self._open <= self._placements.active.keys()

    def vanished(self) -> dict[str, Place]:
        """Runs in jobs of this ablation that its spec no longer asks for."""
        return {
            run: place
            for run, place in self._placements.active.items()
            if run not in self._plan.runs and self._is_ours(place)
        }

    def cycle(self) -> None:
        """Look once at everything, state how attempts ended, and submit what is missing.

        Raises:
            RefusedError: SLURM refuses what the profile asks for.
        """
        self._notes = ()
        self._open = {run for run in self._open if not self._complete(self._plan.runs[run])}
        with self._submissions.settling():
            try:
                settled = self._placements.look()
            except UnreachableError as error:
                self._notes = (f"{error}: nothing is known of the jobs for now",)
                return
            self._notes = self._placements.notes
            self._judge(settled)
            self._submit()
            self._watched |= self._placements.active.keys()

    def _judge(self, ended: Mapping[str, Place]) -> None:
        """Give up what is not worth another attempt; the rest is submitted again."""
        for run in self._open & ended.keys():
            if self._complete(self._plan.runs[run]):
                self._open.discard(run)
            else:
                self._judge_one(run, ended[run])
        ours = [place for run, place in ended.items() if run in self._plan.runs or self._is_ours(place)]
        self._placements.settle(ours)

    def _judge_one(self, run: str, place: Place) -> None:
        since, attempts = self._attempts(self._store.run(run))
        failure = hopeless(attempts, self._profile.retry, place.submission.intent.resources)
        last = attempts[-1].end if attempts else None
        if last is not None and last.cause in ("cancelled", "interrupted"):
            if run not in self._watched:  # a person has ended it, and a person asks for it again
                return
            message = f"its job has ended ({last.message}); the same command goes on from the checkpoint"
            failure = Failure(cause=last.cause, message=message, attempt=0, ended_at=last.ended_at)
        if failure is None:
            self._since[run] = since
        else:
            self._give_up(run, failure)

    def _is_ours(self, place: Place) -> bool:
        return place.submission.intent.ablation == self._plan.name

    def _attempts(self, folder: RunFolder) -> tuple[int, list[Attempt]]:
        """The attempts that count, and the number of those before."""
        since = read_request(folder).since
        return since, self._attempts_since(folder, since)

    def _attempts_since(self, folder: RunFolder, since: int) -> list[Attempt]:
        return [attempt for attempt in folder.attempts.all() if attempt.start.number > since]

    def _give_up(self, run: str, failure: Failure) -> None:
        self._open.discard(run)
        self._failed[run] = failure

    def _submit(self) -> None:
        idle = [run for run in self._plan.runs.values() if run.id in self._open - self._placements.active.keys()]
        if not idle or time.monotonic() < self._held_until:
            return
        self._check_profile()
        try:
            for teachers in (True, False):  # students name the jobs that they wait for
                chosen = [run for run in idle if (run.role == "teacher" or self._teaches(run)) == teachers]
                for group in self._groups(chosen):
                    self._submit_group(group)
            self._held_for_s = FASTEST_S
        except HeldBackError as error:
            self._held_for_s = min(self._held_for_s * 2, 10 * SLOWEST_S)
            self._held_until = time.monotonic() + self._held_for_s
            self._note(f"{error}; tried again in {self._held_for_s:.0f} s")
        except (UnsureError, UnreachableError) as error:
            self._note(str(error))

    def _teaches(self, run: PlannedRun) -> bool:
        return any(other.teacher == run.id for other in self._plan.runs.values())

    def _check_profile(self) -> None:
        from harness.dispatch.feasible import check

        if not self._since and not self._placements.active:  # once, before anything is submitted
            check(self._profile, self._scheduler)

    def _groups(self, runs: Iterable[PlannedRun]) -> list[_Group]:
        groups: dict[tuple[Phase, Resources, tuple[str, ...]], _Group] = {}
        ready = [(run, self._after(run)) for run in runs if not self._is_orphan(run)]
        distinct = {after for _, after in ready if after}
        merged = tuple(sorted({job.partition("_")[0] for after in distinct for job in after}))
        for run, after in ready:
            if after and len(distinct) > MANY_TEACHERS:
                after = merged
            phase, resources = self._needs(run)
            key = (phase, resources, after)
            groups.setdefault(key, _Group(phase, resources, after)).runs.append(run)
        return list(groups.values())

    def _is_orphan(self, run: PlannedRun) -> bool:
        """Whether a run's teacher has failed: then so has the run. One that is held back is waited for."""
        if run.teacher is None or run.teacher not in self._plan.runs:
            return False
        if (failure := self._failed.get(run.teacher)) is not None:
            message = f"its teacher, run {run.teacher}, failed: {failure.message}"
            self._give_up(run.id, Failure(cause="never_started", message=message, attempt=0, ended_at=time.time()))
            return True
        return run.teacher in self._open and run.teacher not in self._placements.active

    def _after(self, run: PlannedRun) -> tuple[str, ...]:
        if run.teacher is None or run.teacher not in self._open:
            return ()
        place = self._placements.training(run.teacher)
        return (place.id,) if place is not None and place.id else ()

    def _needs(self, run: PlannedRun) -> tuple[Phase, Resources]:
        folder, profile = self._store.run(run.id), self._profile
        own = Resources.model_validate({name: getattr(profile, name) for name in Resources.model_fields})
        phase: Phase = "run" if profile.evaluation is None else "evaluate" if folder.weights.exists() else "train"
        asked = profile.evaluation if phase == "evaluate" and profile.evaluation else own
        if not folder.request.exists():
            return phase, asked
        attempts = self._attempts(folder)[1] if run.id in self._since else []
        return phase, resources_for(attempts, asked, profile.retry)

    def _submit_group(self, group: _Group) -> None:
        """An array, or several where it is too large for one; halves of it where SLURM takes no more jobs."""
        tasks = _packed(group.runs, self._profile.pack)
        size = min(self._scheduler.limits().max_array, len(tasks))
        while tasks:
            part = self._affordable(tasks[:size], group)
            if not part:
                return
            try:
                self._submit_array(group, part)
            except HeldBackError:
                if size == 1:
                    raise
                size = max(size // 2, 1)
                continue
            tasks = tasks[len(part) :]

    def _affordable(self, tasks: list[list[PlannedRun]], group: _Group) -> list[list[PlannedRun]]:
        if self._budget is None:
            return tasks
        count = self._budget.affordable(tasks, group.resources, self._submissions.open())
        if count < len(tasks):
            self._note(f"{len(tasks) - count} jobs are held back by the budget of {self._budget.gpu_hours:g} GPU-hours")
        return tasks[:count]

    def _submit_array(self, group: _Group, tasks: list[list[PlannedRun]]) -> None:
        submission = self._write_ahead(group.phase, group.resources, tasks)
        self._sent(submission, group.after)
        if group.phase == "train" and self._profile.evaluation is not None:
            follower = self._write_ahead("evaluate", self._profile.evaluation, tasks, training=submission)
            with suppress(HeldBackError):  # then it is submitted once the training has ended
                self._sent(follower, (), corresponding=submission.array)

    def _write_ahead(
        self,
        phase: Phase,
        resources: Resources,
        tasks: Sequence[Sequence[PlannedRun]],
        training: Submission | None = None,
    ) -> Submission:
        """Everything that jobs will read is on disk before the scheduler hears of them."""
        allowance = self._budget.allowance(tasks[0], resources) if self._budget else None
        intent = Intent.of(
            self._plan.name,
            phase,
            [[run.id for run in task] for task in tasks],
            resources=resources,
            profile=self._profile,
            store=self._store.root.resolve(),
            code=snapshot(self._store.root / "code"),
            allowance_gpu_hours=allowance,
            training=training.intent.id if training else "",
        )
        if training is None:
            runs = [run for task in tasks for run in task]
            with ThreadPoolExecutor(WRITERS) as writers:
                list(writers.map(lambda run: self._prepare(run, intent), runs))
        return self._submissions.add(intent)

    def _prepare(self, run: PlannedRun, intent: Intent) -> None:
        folder = self._store.run(run.id)
        since = self._since.setdefault(run.id, folder.attempts.newest())
        experiment = fitted(run.experiment, self._attempts_since(folder, since), intent.resources.processes)
        settings = Settings.model_validate({**dict(self._settings), "store": intent.store})
        request = Request.of(experiment, run.id, run.teacher, settings, intent.resources.cpus_per_task)
        table: dict[str, Any] = request.model_dump(mode="json")
        folder.prepare(run.identity, table | {"submission": intent.id, "since": since, "phase": intent.phase})

    def _sent(self, submission: Submission, after: tuple[str, ...], corresponding: str | None = None) -> None:
        """Hand a submission to the scheduler.

        Raises:
            HeldBackError, RefusedError: it was not accepted; it is withdrawn.
            UnsureError: it may have been accepted; the next cycles look for it.
        """
        try:
            array = self._scheduler.submit(batch_of(submission, after, corresponding))
        except DispatchError as error:
            # Whatever was answered: it may have been accepted all the same.
            try:
                found = self._scheduler.find([submission.intent.name])
            except UnreachableError as silent:
                raise UnsureError(error.what, where=submission.intent.name, fix="it is looked for") from silent
            if submission.intent.name not in found:
                if isinstance(error, HeldBackError | RefusedError):
                    submission.close(f"withdrawn: {error}")
                raise
            array = found[submission.intent.name]
        submission.accept(array)
        self._placements.add(submission)

    def _complete(self, run: PlannedRun) -> bool:
        folder = self._store.run(run.id)
        if not folder.record_file.exists():
            return False
        folder.check(run.identity)
        return is_complete(folder, run.experiment.evaluation)

    def _signature(self) -> tuple[object, ...]:
        phases = {run: place.job.phase if place.job else "" for run, place in self._placements.active.items()}
        return (len(self._open), len(self._failed), sorted(phases.items()))

    def _note(self, text: str) -> None:
        self._notes = (*self._notes, text)


def batch_of(submission: Submission, after: tuple[str, ...] = (), corresponding: str | None = None) -> Batch:
    """What the scheduler is asked for."""
    intent = submission.intent
    return Batch(
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
    """The shell command of a job: the snapshot comes first on sys.path, and the working folder not at all."""
    python = intent.profile.python or shlex.quote(sys.executable)
    code, folder = shlex.quote(str(intent.code.resolve())), shlex.quote(str(submission.folder.resolve()))
    path = f'PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return f"env PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 {path} {python} -m harness.dispatch.node {folder}"


def _packed(runs: Sequence[PlannedRun], size: int) -> list[list[PlannedRun]]:
    return [list(runs[start : start + size]) for start in range(0, len(runs), size)]
