"""Random histories of sweeps and searches over a made scheduler: jobs end in any way, commands come and go, people
cancel.

The folders, the submission log and the executors are real. Only SLURM and the workers are simulated: a job that begins
leaves in its runs' folders"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeVar
from unittest.mock import patch

import pytest

from harness.base.errors import DispatchError
from harness.base.exit_status import DISK_IS_FULL
from harness.config.profile import Profile
from harness.execute.life import MOST_STARTS, Life
from harness.execute.slurm import executor as sweep
from harness.execute.slurm import job_tracker, jobs
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.scheduler import ArrayRequest, Job
from harness.execute.slurm.submission_log import Intent, Submission, load
from harness.execute.status import statuses
from harness.planning.completeness import Completeness, left_to_do
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder
from harness.runs.record import Cause, Failure
from harness.runs.request import evaluation_key, read_request
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.execute.made import MadeScheduler, attempted, train
from tests.head.made import MINING, ablation, plan_of, record

SHARDS = int(os.environ.get("SHARDS", "1"))
"""Tests among which HISTORIES are shared, one for each process of `make histories`."""
HISTORIES = int(os.environ.get("HISTORIES", "100"))
FIRST = int(os.environ.get("FIRST", "0"))
"""Seed of the first history; the others have the next ones."""
LENGTH = 25
T = TypeVar("T")
MINED = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}
_PLANS = {
    "plain": plan_of(ablation({"a": {}}, seeds=2)),
    "taught": plan_of(ablation({"a": {}, "b": MINED}, seeds=2)),
    "suite": plan_of(ablation({"a": {}}, seeds=2, base={"evaluation": {"sets": ["shapes", "retrieval"]}})),
    "more": plan_of(ablation({"a": {}, "b": MINED}, seeds=1, base={"evaluation": {"sets": ["shapes", "more"]}})),
}
PLANS = {key: replace(plan, name="same", file=Path(f"{key}.toml")) for key, plan in _PLANS.items()}
"""They share runs, and the name. No set of the suite `retrieval` is on this machine."""
TOLD = re.compile(
    "(no progress in 3 attempts; the last: |it failed twice in the same way: )?"
    f"(because of|its teacher, run|its process died|its job ended|job |SLURM reports|{DISK_IS_FULL})"
)
"""How failures begin that are given up for good reason."""
SEARCH = "search"
"""Name of a command that is given runs of TRIALS one by one, and pauses them."""
TRIALS = replace(PLANS["taught"], file=Path(f"{SEARCH}.toml"))
STEPS_OF_A_RUN = 300
FARES: dict[str, tuple[Cause | None, str]] = {
    "user_error": ("user_error", "FAILED"),
    "raised": ("crashed", "FAILED"),
    "killed": (None, "FAILED"),
    "timed_out": ("timed_out", "TIMEOUT"),
    "preempted": (None, "PREEMPTED"),
    "node_failure": (None, "NODE_FAIL"),
    "out_of_memory": (None, "OUT_OF_MEMORY"),
    "full_disk": (None, "FAILED"),
}
"""How a job may end besides well: the cause that a worker writes, if any, and the state that SLURM reports."""


def key_of(plan: Plan) -> str:
    """The name of a plan's file."""
    assert plan.file is not None
    return plan.file.stem


class Clock:
    """A second passes from one look at it to the next. It takes the place of `time` in the executor."""

    def __init__(self) -> None:
        self.now = 0.0
        self.time, self.sleep = time.time, lambda _seconds: None

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


class World:
    """A store, a scheduler, and what its jobs do."""

    def __init__(self, root: Path, scheduler: MadeScheduler, profile: Profile) -> None:
        self.store, self.slurm, self.profile = Store(root / "store"), scheduler, profile
        self.settings = Settings(store=self.store.root)
        self.completeness = Completeness(self.store, self.settings)
        scheduler.answer = self._accepted
        self.asked: list[Plan] = []
        """The plans of all commands so far; that of a search has the runs that were added to it."""
        self.limits: dict[str, int | None] = {}
        """By run that a search was given: the step at which it pauses."""
        self.accepted: Counter[str] = Counter()
        """By run: how many jobs had it."""
        self.died: list[tuple[str, str]] = []
        """Jobs that ended before they did anything, each with a run that it should have executed."""
        self.filled: list[tuple[str, str]] = []
        """Jobs for which the disk was full, each with such a run."""
        self.here: dict[str, ExitStack] = {}
        """Runs that processes outside of jobs execute."""

    def command(self, plan: Plan) -> SlurmExecutor:
        own = replace(plan, runs=dict(plan.runs))
        self.asked.append(own)
        return SlurmExecutor(own, self.store, self.settings, self.profile, self.slurm)

    def search(self) -> SlurmExecutor:
        """A search that goes on with the runs that were added before."""
        command = self.command(replace(TRIALS, runs={}))
        for run in self.limits:
            self.add(command, run)
        return command

    def add(self, command: SlurmExecutor, run: str) -> None:
        """Add a run to a search up to its limit, after its teacher."""
        if teacher := TRIALS.runs[run].teacher:
            command.add(TRIALS.runs[teacher])
        command.add(TRIALS.runs[run], self.limits[run])

    def is_complete(self, plan: Plan, run: str) -> bool:
        """Whether a command with this plan has all that it asked for of the run."""
        limit = self.limits.get(run) if key_of(plan) == SEARCH else None
        if limit is not None and self.step(run) >= limit:
            return True
        return self.completeness.is_complete(plan.runs[run])

    def step(self, run: str) -> int:
        return int(self.store.run(run).read_progress().get("step", 0))

    def _accepted(self, batch: ArrayRequest) -> None:
        intent = load(batch.folder).intent
        for run in (run for task in intent.tasks for run in task):
            self.accepted[run] += 1
            assert run not in self.here, f"a process executes run {run}, which is given to a job"
            wanted = [plan for plan in self.asked if run in plan.runs]
            assert any(not self.is_complete(plan, run) for plan in wanted), f"finished run {run} is submitted again"

    def submission(self, job: str) -> tuple[Submission, int]:
        array, _, task = job.partition("_")
        return load(self.slurm.batches[array].folder), int(task)

    def alive(self, phase: str = "") -> list[Job]:
        return [job for job in self.slurm.jobs.values() if job.phase in ((phase,) if phase else ("pending", "running"))]

    def ready(self) -> list[str]:
        """Pending jobs whose dependencies allow them to start; SLURM cancels those that can never start."""
        found = []
        for job in self.alive("pending"):
            array, _, task = job.id.partition("_")
            batch = self.slurm.batches[array]
            if batch.corresponding is not None:
                trained = self._ended(f"{batch.corresponding}_{task}")
                if trained is not None and trained.state != "COMPLETED":
                    self.slurm.end(job.id, "CANCELLED")
                if trained is None or trained.state != "COMPLETED":
                    continue
            if all(self._ended(one) is not None for after in batch.after for one in self._jobs(after)):
                found.append(job.id)
        return found

    def _jobs(self, stated: str) -> list[str]:
        known = [*self.slurm.jobs, *(job.id for job in self.slurm.past)]
        return [job for job in known if job == stated or job.startswith(f"{stated}_")]

    def _ended(self, job: str) -> Job | None:
        known = [*self.slurm.past, *self.slurm.jobs.values()]
        return next((one for one in known if one.id == job and one.phase == "ended"), None)

    def assigned(self, job: str, *, begins: bool = True) -> Iterator[RunFolder]:
        """The runs that a job executes, as the supervisor on its node finds them if it `begins`."""
        submission, task = self.submission(job)
        intent = submission.intent
        if submission.is_closed or task in submission.settled():
            return
        for run in intent.tasks[task]:
            folder = self.store.run(run)
            request = read_request(folder)
            trained = folder.weights.exists()
            untaught = request.teacher_run and not self.store.run(request.teacher_run).weights.exists()
            if request.submission not in (intent.id, intent.training) or not left_to_do(folder):
                continue
            if (intent.phase == "train" and trained) or (intent.phase == "evaluate" and not trained):
                continue
            if untaught and not trained:
                if begins:
                    attempted(folder, job, "no_teacher", message="its teacher is not trained")
                continue
            yield folder

    def end_well(self, job: str) -> None:
        intent = self.submission(job)[0].intent
        for folder in self.assigned(job):
            self.finish(folder, job, intent)
        state = (
            "CANCELLED" if job in self.slurm.cancelled else "COMPLETED" if self._is_of_use(job, intent) else "FAILED"
        )
        self.slurm.end(job, state, reason="1:0")

    def finish(self, folder: RunFolder, job: str, intent: Intent) -> None:
        """A worker does what it is asked for: it trains up to a pause or to the end, and evaluates."""
        limit, step = folder.pause_step(), self.step(folder.id)
        if limit is not None and limit < STEPS_OF_A_RUN and not folder.weights.exists():
            attempted(folder, job, "completed", step=max(step, limit))
            return
        attempted(folder, job, "completed", step=STEPS_OF_A_RUN)
        if not folder.is_trained() and not folder.record_file.exists():
            train(folder)
        if intent.phase == "train":
            return
        evaluation = read_request(folder).experiment.evaluation
        before = {one.set: one.request for one in folder.record().evaluations} if folder.record_file.exists() else {}
        now = {name: evaluation_key(evaluation, name) for name in evaluation.references}
        folder.finish(record(folder.id, requests={**before, **now}))

    def _is_of_use(self, job: str, intent: Intent) -> bool:
        """Whether a job exits with 0: a training job if one of its runs is trained, any other if all are done."""
        runs = [self.store.run(run) for run in self.slurm.runs_of(job)]
        if intent.phase == "train":
            return any(folder.weights.exists() for folder in runs)
        return all(folder.is_paused() or not left_to_do(folder) for folder in runs)

    def end_badly(self, job: str, how: str, step: int, one_alone: bool) -> None:
        """A job's runs end in this way, or one of them does and the others end well."""
        intent, (cause, state) = self.submission(job)[0].intent, FARES[how]
        reason = "74:0" if how == "full_disk" else "1:0"
        for number, folder in enumerate(self.assigned(job)):
            if one_alone and number:
                self.finish(folder, job, intent)
                continue
            at = STEPS_OF_A_RUN if folder.weights.exists() else max(step, self.step(folder.id))
            attempted(folder, job, cause, message=f"because of {how}", step=at, raised=how == "raised")
            self.filled += [(job, folder.id)] * (how == "full_disk")
        if one_alone and state == "FAILED" and how != "full_disk":
            state = "COMPLETED" if self._is_of_use(job, intent) else "FAILED"
        self.slurm.end(job, state, reason="0:0" if state == "COMPLETED" else reason)


class History:
    """Commands, jobs, faults and wishes in any order; the draws of step n are those of (seed, n) alone."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed, self.told = seed, ["begins"]
        self.random = Random(f"{seed}")
        table = {"gpus_per_task": 1, "mem_gb": 8, "partitions": ["gpu"], "pack": self.draw(1, 2)}
        table |= {"retry": {"attempts": 3}}
        if self.draw(True, False):
            table["evaluation"] = {"gpus_per_task": 1, "mem_gb": 4}
        self.slurm = MadeScheduler(
            with_accounting=self.draw(True, False),
            most_jobs=self.draw(10**6, 2),
            slow_to_leave=self.draw(True, False),
        )
        self.world = World(root, self.slurm, Profile.model_validate(table))
        self.commands: dict[str, SlurmExecutor] = {}
        self.cancelled: dict[str, dict[str, int]] = {}
        """By command: how often each run had been in a job when a person cancelled it."""

    def draw(self, *values: T) -> T:
        """One of `values`."""
        return self.random.choice(values)

    def tell(self, number: int) -> None:
        """Step `number`: any that is possible now."""
        self.random = Random(f"{self.seed}.{number}")
        possible = [step for step, when in STEPS if when is None or when(self)]
        step = self.draw(*possible)
        self.told.append(step.__name__)
        step(self)
        self.no_run_is_in_two_jobs()
        self.wishes_are_kept()

    # -- commands ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """`harness run`; if one for this spec is there already, it is killed first."""
        name = self.draw(*PLANS)
        self.commands[name] = self.world.command(PLANS[name])
        self.cancelled[name] = {}
        for others in self.cancelled.values():  # they asked again
            for run in PLANS[name].runs:
                others.pop(run, None)
        self._cycle(name)

    def trial(self) -> None:
        """A search begins a trial, or promotes it; a search that was killed goes on."""
        run, until = self.draw(*sorted(set(TRIALS.cells.values()))), self.draw(100, 200, None)
        if SEARCH not in self.commands:
            self.cancelled[SEARCH] = {}
            self.commands[SEARCH] = self.world.search()
            self._asked_again(*self.world.limits)
        self._asked_again(run)
        self.world.limits[run] = until
        self.world.add(self.commands[SEARCH], run)

    def _asked_again(self, *runs: str) -> None:
        """The search began after these were cancelled, unless it has seen that."""
        for run in runs:
            for one in {run, TRIALS.runs[run].teacher or run} - self.cancelled[SEARCH].keys():
                for seen in self.cancelled.values():
                    seen.pop(one, None)

    def pause(self) -> None:
        run, step = self.draw(*sorted(self.world.limits)), self.draw(100, 200)
        if self.commands[SEARCH].is_open(run):
            self.world.limits[run] = step
            self.commands[SEARCH].pause(run, step)

    def cycle(self) -> None:
        self._cycle(self.draw(*sorted(self.commands)))

    def _cycle(self, name: str) -> None:
        """A command looks and submits; what it says is true."""
        command = self.commands[name]
        with suppress(DispatchError):
            command.cycle()
        assert name == SEARCH or not command.vanished(), "a job of another spec is called one of its own"
        working = {
            run
            for job in self.world.alive()
            for submission, task in (self.world.submission(job.id),)
            if task not in submission.settled()
            for run in submission.intent.tasks[task]
        }
        known = not (self.slurm.silent or self.slurm.lost_answer or self.world.here)
        waits = command._tracker.active or not command._open
        assert working or waits or not known, f"nothing goes on, and {command._open} are not submitted"
        promised = command._open - set(command.without_jobs())
        assert self.slurm.silent or promised <= working, f"no job goes on with {promised - working}"

    def kill(self) -> None:
        name = self.draw(*sorted(self.commands))
        del self.commands[name], self.cancelled[name]

    def cancel(self) -> None:
        """`harness cancel SPEC`, or of one run."""
        name = self.draw(*sorted(self.commands))
        known = sorted(self.world.limits if name == SEARCH else PLANS[name].runs)
        runs = self.draw(known, [self.draw(*known)])
        had = {run for job in self.world.alive() for run in self.slurm.runs_of(job.id)} & set(runs)
        with patch.object(jobs, "Slurm", lambda: self.slurm):
            jobs.cancel_jobs(runs, self.world.store)
        for job in self.world.alive():
            submission, task = self.world.submission(job.id)
            own = (submission.intent.id, submission.intent.training)
            mine = [run for run in submission.intent.tasks[task] if run in runs]
            if not submission.is_closed and any(
                read_request(self.world.store.run(run)).submission in own for run in mine
            ):
                assert task in submission.settled(), f"job {job.id} was cancelled, and goes on"
        for seen in self.cancelled.values():
            seen.update({run: self.world.accepted[run] for run in had})

    # -- jobs -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if ready := self.world.ready():
            self.slurm.run(self.draw(*ready))

    def quiet(self) -> None:
        """All jobs that can start do so, and end well."""
        for job in self.world.ready():
            self.slurm.run(job)
        for one in self.world.alive("running"):
            self.world.end_well(one.id)

    def end_well(self) -> None:
        self.world.end_well(self.draw(*self.world.alive("running")).id)

    def end_badly(self) -> None:
        job, how = self.draw(*self.world.alive("running")), self.draw(*sorted(FARES))
        self.world.end_badly(job.id, how, self.draw(0, 100, 200), self.draw(True, False))

    def die_before_it_starts(self) -> None:
        """`setup = ["exit 1"]`, a node that cannot see the store, or an administrator's scancel."""
        if ready := self.world.ready():
            job, state, full = self.draw(*ready), self.draw("FAILED", "NODE_FAIL", "CANCELLED"), self.draw(True, False)
            lost = [(job, folder.id) for folder in self.world.assigned(job, begins=False)]
            self.world.died += lost
            self.world.filled += lost * (full and state == "FAILED")
            self.slurm.end(job, state, reason="74:0" if full and state == "FAILED" else "1:0")

    def forget(self) -> None:
        """squeue no longer shows a job that has ended."""
        self.slurm.past.append(self.slurm.jobs.pop(self.draw(*self.world.alive("ended")).id))

    # -- the cluster ------------------------------------------------------------------------------------------------

    def weather(self) -> None:
        """Each of them is out of order in a third of the time."""
        for what in ("silent", "accounting_silent", "lost_answer"):
            setattr(self.slurm, what, self.draw(True, False, False))

    # -- people -----------------------------------------------------------------------------------------------------

    def delete_a_record(self) -> None:
        """To have it measured again."""
        free = {run for job in self.world.alive() for run in self.slurm.runs_of(job.id)}
        runs = {run: self.world.store.run(run) for plan in PLANS.values() for run in plan.runs if run not in free}
        if done := sorted(run for run, folder in runs.items() if folder.record_file.exists()):
            folder = runs[self.draw(*done)]
            train(folder)
            folder.record_file.unlink()

    def work_here(self) -> None:
        """A command takes a run that no job has and executes it in a process of its own; or that has ended."""
        here, store = self.world.here, self.world.store
        if here:
            here.pop(min(here)).close()
            return
        runs = {run for plan in self.world.asked for run in plan.runs if left_to_do(store.run(run)).training}
        run = self.draw(*sorted(runs or PLANS["plain"].runs))
        with patch.object(jobs, "Slurm", lambda: self.slurm), suppress(DispatchError):
            jobs.refuse_what_jobs_have([run], "spec", store)
            if run in runs:
                here[run] = ExitStack()
                here[run].enter_context(store.run(run)._lock())
                number = store.run(run).attempts.begin()
                here[run].callback(store.run(run).attempts.end, number, "interrupted", "because of a person")
                here[run].callback(store.run(run).attempts.check, number)

    def look(self) -> None:
        """`harness status` says what is true."""
        plan = PLANS[self.draw(*sorted(self.commands.keys() & PLANS.keys()))]
        with patch.object(jobs, "Slurm", lambda: self.slurm):
            found, _ = statuses(plan, self.world.store)
        having = {run for job in self.world.alive() for run in self.slurm.runs_of(job.id)}
        for one in found:
            complete = self.world.is_complete(plan, one.run)
            assert (one.life is Life.DONE) == complete, f"run {one.run} is called {one.state}"
            if one.run in having and not complete and not self.slurm.silent:
                assert one.is_moving or one.life is Life.PAUSED, f"run {one.run} is in a job, and called {one.state}"

    # -- what always holds ------------------------------------------------------------------------------------------

    def no_run_is_in_two_jobs(self) -> None:
        having: Counter[tuple[str, bool]] = Counter()
        for job in self.world.alive():
            submission, task = self.world.submission(job.id)
            if not submission.is_closed and task not in submission.settled():
                having.update((run, submission.intent.phase == "evaluate") for run in submission.intent.tasks[task])
        assert all(number == 1 for number in having.values()), f"a run is in two jobs: {having}"

    def wishes_are_kept(self) -> None:
        for seen in self.cancelled.values():
            for run, before in seen.items():
                assert self.world.accepted[run] == before, f"run {run} was cancelled and submitted again"

    def come_to_an_end(self) -> None:
        """With a cluster that works, each spec comes to an end, and says of each run what is true."""
        world = self.world
        world.slurm.silent = world.slurm.accounting_silent = world.slurm.lost_answer = False
        while world.here:
            world.here.popitem()[1].close()
        self.cancelled.clear()
        for name in dict.fromkeys(map(key_of, world.asked)):
            if failed := self._end(name):  # of jobs that ended before: the first command tells, the next tries again
                told = [failure.message for failure in failed]
                assert all(map(TOLD.match, told)), f"given up by no fault of theirs: {told}"
                again = self._end(name)
                assert not again, f"given up by jobs that end well: {again}"
        for folder in world.store.runs():
            for attempt in folder.attempts.all():
                assert attempt.end is not None, f"an attempt of run {folder.id} has no cause"
        for job, run in world.filled if world.slurm.with_accounting else ():
            told = [one.end.message for one in world.store.run(run).attempts.all() if one.end and one.start.job == job]
            assert told, f"no attempt of run {run} tells of job {job}"
            assert DISK_IS_FULL in told[-1], f"the disk was full for job {job}, and the attempt says {told}"
        for job, run in world.died:
            jobs = [attempt.start.job for attempt in world.store.run(run).attempts.all()]
            assert job in jobs, f"job {job} died before it started run {run}, of which no attempt tells"

    def _end(self, name: str) -> Collection[Failure]:
        """A command and jobs that end well; returns the failures that it tells."""
        world, before = self.world, self.world.accepted.copy()
        command = world.search() if name == SEARCH else world.command(PLANS[name])
        plan = command._plan
        for _ in range(60):
            if not command._open:
                break
            command.cycle()
            for job in world.ready():
                world.slurm.run(job)
            for one in world.alive("running"):
                world.end_well(one.id)
        command.wrap_up()
        progress = command.progress()
        assert not command._open, f"{name} does not come to an end: {command._open}"
        for run in plan.runs:
            assert world.is_complete(plan, run) != (run in progress.failed), f"what is said of run {run} is not true"
            assert world.accepted[run] - before[run] <= MOST_STARTS
        return progress.failed.values()


def _has(phase: str) -> Callable[[History], object]:
    return lambda history: history.world.alive(phase)


STEPS: tuple[tuple[Callable[[History], None], Callable[[History], object] | None], ...] = (
    (History.run, None),
    (History.trial, None),
    (History.pause, lambda history: history.world.limits and SEARCH in history.commands),
    (History.cycle, lambda history: history.commands),
    (History.cycle, lambda history: history.commands),
    (History.kill, lambda history: history.commands),
    (History.cancel, lambda history: history.commands),
    (History.start, _has("pending")),
    (History.start, _has("pending")),
    (History.quiet, lambda history: history.world.alive()),
    (History.end_well, _has("running")),
    (History.end_badly, _has("running")),
    (History.die_before_it_starts, _has("pending")),
    (History.forget, _has("ended")),
    (History.weather, None),
    (History.delete_a_record, None),
    (History.work_here, None),
    (History.look, lambda history: history.commands.keys() & PLANS.keys()),
)
"""What may happen, each as often as it stands here, and when it can."""


def fault(seed: int, numbers: Collection[int]) -> str:
    """What the history of `seed`, told with these of its steps, shows to be wrong; empty if nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        history = History(seed, Path(root))
        try:
            for number in numbers:
                history.tell(number)
            history.told.append("comes to an end")
            history.come_to_an_end()
        except Exception as error:  # also those of the code under test: a command may raise none
            return f"{type(error).__name__}: {error}; history {seed}: {', '.join(history.told)}"
    return ""


def shortened(seed: int) -> tuple[list[int], str]:
    """The steps of a history that are needed for its fault, and the fault."""
    numbers = list(range(LENGTH))
    for number in range(LENGTH):
        if fault(seed, without := [one for one in numbers if one != number]):
            numbers = without
    return numbers, fault(seed, numbers)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting: what is not found at once is withdrawn, and a killed job's accounting is there."""
    monkeypatch.setattr(sweep, "snapshot", lambda root: root / "copy")
    monkeypatch.setattr(job_tracker, "ADOPTION_S", 0.0)
    monkeypatch.setattr(job_tracker, "LAG_S", 0.0)
    monkeypatch.setattr(sweep, "time", Clock())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_histories(shard: int) -> None:
    for seed in range(FIRST + shard, FIRST + HISTORIES, SHARDS):
        if fault(seed, range(LENGTH)):
            numbers, what = shortened(seed)
            raise AssertionError(f"{what} (steps {numbers})")


@pytest.mark.usefixtures("quick")
def test_a_set_that_a_quota_holds_back_while_another_command_finishes_the_run(tmp_path: Path) -> None:
    profile = Profile.model_validate({"gpus_per_task": 1, "mem_gb": 8, "partitions": ["gpu"]})
    world = World(tmp_path, MadeScheduler(), profile)
    asked = plan_of(ablation({"a": {}}, seeds=2, base={"evaluation": {"sets": ["shapes", "more"]}}))
    more, plain = world.command(replace(asked, file=Path("more.toml"))), world.command(PLANS["plain"])
    for command, most in ((more, 0), (plain, 10**6)):
        world.slurm.most_jobs = most
        command.cycle()
    for job in world.ready():
        world.slurm.run(job)
        world.end_well(job)
    world.slurm.most_jobs = 0
    for _ in range(3):
        more.cycle()
    assert more.progress().failed == {}
