"""Carry out a plan on a cluster: submit missing runs, track their jobs, resubmit runs whose jobs died.

A search may add runs to the plan meanwhile; a new run is submitted in the next cycle, which starts soon after.

All state is on disk. Any command on any login node can continue the work, and no command has to stay alive, because
jobs finish by themselves. Each cycle reads the run folders first, then queries the scheduler once for all jobs. If the
scheduler does not answer, the state of jobs is unknown and the cycle does nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

from harness.base.errors import StoreError
from harness.config.profile import Profile
from harness.execute.executor import Progress
from harness.execute.slurm.gpu_hours import GpuHourBudget
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob
from harness.execute.slurm.jobs import is_of
from harness.execute.slurm.retry_policy import hopeless
from harness.execute.slurm.scheduler import HeldBackError, Scheduler, UnreachableError, UnsureError
from harness.execute.slurm.snapshot import snapshot
from harness.execute.slurm.submission_log import Intent, SubmissionLog
from harness.execute.slurm.submitter import Submitter
from harness.planning.completeness import Completeness, Missing, broken_promise
from harness.planning.plan import Plan
from harness.runs.planned import PlannedRun
from harness.runs.record import Failure
from harness.runs.request import read_request
from harness.runs.settings import Settings
from harness.runs.store import Store

FASTEST_S, SLOWEST_S = 1.0, 30.0
"""Shortest and longest pause between cycles, in seconds. The pause grows while nothing changes."""
FRUITLESS = 10
"""How often a command submits a run that makes no progress, whatever the causes of its jobs' ends."""
RELEASES = 3
"""How often a command releases a job that SLURM failed to launch. Each failure may take a node out of service."""
FEW, FEW_EVERY_S = 32, 0.3
"""With at most FEW open runs, their folders are also checked between cycles, every FEW_EVERY_S seconds, so that a
search can replace a finished run at once."""
JOBS = 4
"""Number of runs that a search keeps in jobs if neither the command nor the profile gives one."""
LAST_LOOKS = 15
"""Maximum number of cycles that `wrap_up` waits for the causes of finished runs' attempts."""


class SlurmExecutor:
    """Carries out one plan with one profile."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        settings: Settings,
        profile: Profile,
        scheduler: Scheduler,
        budget: GpuHourBudget | None = None,
    ) -> None:
        self.jobs = profile.array_parallelism or JOBS
        self._plan, self._store = plan, store
        self._completeness = Completeness(store, settings)
        self._profile, self._scheduler = profile, scheduler
        self._submissions = SubmissionLog(store)
        self._tracker = JobTracker(store, self._submissions, scheduler)
        self._submitter = Submitter(plan, settings, profile, scheduler, self._tracker)
        self._submitter.budget = budget
        self._failed: dict[str, Failure] = {}
        self._open = set(plan.runs)
        self._open -= {run.id for run in plan.runs.values() if self._is_complete(run)}
        self._notes: tuple[str, ...] = ()
        self._held_until, self._held_for_s = 0.0, FASTEST_S
        self._watched: set[str] = set()
        """Runs that this command has seen in an active job."""
        self._submitted: dict[str, tuple[Missing, int, int]] = {}
        """By run: what was missing and the step reached at its last submission, and how often it was submitted in
        that state."""
        self._released: Counter[str] = Counter()
        """By job: how often it was released after a failed launch."""
        self._stopping, self._is_due = False, False

    def add(self, run: PlannedRun, until: int | None = None) -> None:
        """Carry out one more run."""
        self._plan.runs[run.id] = run
        self._failed.pop(run.id, None)
        self._limit(run.id, until)
        if not self._is_over(run):
            self._open.add(run.id)
            self._is_due = True

    def pause(self, run_id: str, step: int) -> None:
        """Have a run write a checkpoint and pause after `step`."""
        self._limit(run_id, step)

    def is_open(self, run_id: str) -> bool:
        """Whether a run is unfinished and not given up."""
        return run_id in self._open

    def failure(self, run_id: str) -> Failure | None:
        """Why a run was given up; None if it was not."""
        return self._failed.get(run_id)

    def progress(self) -> Progress:
        """The current state of all runs."""
        running = {
            run: self._store.run(run).read_progress()
            for run, tracked in self._tracker.active.items()
            if run in self._open and tracked.job is not None and tracked.job.phase == "running"
        }
        total = len(self._plan.runs)
        waiting = len(self._open & self._tracker.active.keys()) - len(running)
        done = total - len(self._open) - len(self._failed)
        return Progress(done, total, running, dict(self._failed), (), waiting, self._notes)

    def run(self) -> Iterator[Progress]:
        """Cycle until every run is done or failed; yields a snapshot after each cycle and while it waits."""
        pause, before = FASTEST_S, self._signature()
        while self._open and not self._stopping:
            self.cycle()
            yield self.progress()
            after = self._signature()
            if self._submitter.held_back and not self._tracker.active:
                break  # no job is left that could return unused hours to the budget
            pause = FASTEST_S if after != before else min(pause * 1.5, SLOWEST_S)
            before = after
            yield from self._wait(pause)
        yield self.progress()

    def _wait(self, pause_s: float) -> Iterator[Progress]:
        """Wait until the next cycle: for `pause_s`, or briefly if a run was added."""
        begun, few = time.monotonic(), len(self._open) <= FEW
        look_s = min(FEW_EVERY_S if few else FASTEST_S, pause_s)
        while self._open and not self._stopping:
            if time.monotonic() - begun >= (look_s if self._is_due else pause_s):
                return
            time.sleep(look_s)
            if few:
                self._close()
            yield self.progress()

    def wrap_up(self) -> None:
        """Wait a short while for the jobs of finished runs to end, so that every attempt gets its cause."""
        for number in range(LAST_LOOKS):
            mine = [one for one in self._submissions.open() if self._is_ours(one.intent)]
            if self._stopping or not mine or self._open:
                return
            if number:
                time.sleep(FASTEST_S)
            self.cycle()

    def stop(self) -> None:
        """Have `run` return. Jobs continue."""
        self._stopping = True

    @property
    def is_submitted(self) -> bool:
        """Whether every open run has an active job that was not asked to stop."""
        active = self._tracker.active
        return all(run in active and not active[run].is_leaving for run in self._open)

    def vanished(self) -> dict[str, TrackedJob]:
        """Runs in jobs of this ablation that its spec no longer contains."""
        return {
            run: tracked
            for run, tracked in self._tracker.active.items()
            if run not in self._plan.runs and self._is_ours(tracked.submission.intent)
        }

    def cycle(self) -> None:
        """Query all jobs once, record how attempts ended, and submit missing runs.

        Raises:
            RefusedError: SLURM refuses the profile's resources.
        """
        self._notes, self._is_due = (), False
        self._close()
        with self._submissions.settling():
            try:
                settled = self._tracker.look()
            except UnreachableError as error:
                self._notes = (f"{error}: the states of jobs are unknown for now",)
                return
            self._notes = self._tracker.notes
            self._judge(settled)
            self._release()
            self._submit()
            # If a job was cancelled before this command saw it, the cancellation belongs to an earlier request.
            self._watched |= {run for run, job in self._tracker.active.items() if not job.is_leaving}

    def _judge(self, ended: Mapping[str, TrackedJob]) -> None:
        """Give up runs that are not worth another attempt; the others stay open and are submitted again."""
        for run in self._open & ended.keys():
            if self._is_over(self._plan.runs[run]):
                self._open.discard(run)
            else:
                self._judge_one(run, ended[run])
        ours = [
            tracked
            for run, tracked in ended.items()
            if run in self._plan.runs or self._is_ours(tracked.submission.intent)
        ]
        self._tracker.settle(ours)

    def _judge_one(self, run: str, tracked: TrackedJob) -> None:
        folder = self._store.run(run)
        since = read_request(folder).since
        attempts = folder.attempts.since(since)
        failure = hopeless(attempts, self._profile.retry, tracked.submission.intent.resources)
        last = attempts[-1].end if attempts else None
        if last is not None and last.cause in ("cancelled", "interrupted"):
            # If the job ended before this command saw it active, this command is the user's request to resume it.
            if run not in self._watched:
                return
            message = f"its job has ended ({last.message}); repeat the command to resume from the checkpoint"
            failure = Failure(cause=last.cause, message=message, attempt=0, ended_at=last.ended_at)
        if failure is None:
            self._submitter.since[run] = since
        else:
            self._give_up(run, failure)

    def _release(self) -> None:
        """Release jobs that SLURM holds because it failed to launch them; SLURM never releases them by itself."""
        active = self._tracker.active
        stuck = {
            tracked.id
            for run, tracked in active.items()
            if run in self._plan.runs and tracked.job and tracked.job.is_stuck
        }
        chosen = {job for job in stuck if self._released[job] < RELEASES}
        if chosen:
            self._note(f"SLURM failed to launch {_listed(chosen)}: released")
            self._released.update(chosen)
            with suppress(UnreachableError):
                self._scheduler.release(chosen)
        if left := stuck - chosen:
            fix = "check the nodes, then run `scontrol release JOB`"
            self._note(f"SLURM failed {RELEASES} times to launch {_listed(left)}, and holds it: {fix}")

    def _is_ours(self, intent: Intent) -> bool:
        return is_of(intent, self._plan)

    def _give_up(self, run: str, failure: Failure) -> None:
        self._open.discard(run)
        self._failed[run] = failure

    def _submit(self) -> None:
        unplaced = self._open - self._tracker.active.keys()
        idle = [run for run in self._plan.runs.values() if run.id in unplaced and self._is_of_use(run)]
        if not idle or (time.monotonic() < self._held_until and self._tracker.active):
            return  # without an active job of this plan, retry at once
        self._check_profile()
        self._submitter.held_back, before = 0, set(self._tracker.active)
        code, awaited = snapshot(self._store.root / "code"), {run.teacher for run in self._plan.runs.values()}
        try:
            for teachers in (True, False):  # teachers first: a student's submission names its teacher's job
                chosen = [run for run in idle if (run.id in awaited) == teachers and not self._is_orphan(run)]
                self._submitter.submit(chosen, self._open, code)
                self._count(run for run in chosen if run.id in self._tracker.active)
            self._held_for_s = FASTEST_S
        except HeldBackError as error:
            grown = self._tracker.active.keys() - before
            self._held_for_s = FASTEST_S if grown else min(self._held_for_s * 2, 10 * SLOWEST_S)
            self._held_until = time.monotonic() + self._held_for_s
            self._note(f"{error}; retrying in {self._held_for_s:.0f} s")
        except (UnsureError, UnreachableError) as error:
            self._note(str(error))
        if self._submitter.held_back:
            self._note(f"{self._submitter.held_back} jobs are held back by the budget")

    def _is_of_use(self, run: PlannedRun) -> bool:
        """Whether to submit `run`. Gives it up if earlier submissions made no progress.

        The causes of its jobs' ends play no role here, so the plan comes to an end even if a cause is wrong or unknown.
        """
        left, step = self._completeness.missing(run), self._step(run.id)
        why = broken_promise(self._store.run(run.id), left, run.steps)
        before, at, times = self._submitted.get(run.id, (left, step, 0))
        if why is None and (before, at) == (left, step) and times >= FRUITLESS:
            why = f"submitted {times} times without progress, still missing {left}; see `harness logs {run.id}`"
        if why is not None:
            self._give_up(run.id, Failure(cause="never_started", message=why, attempt=0, ended_at=time.time()))
        return why is None

    def _count(self, submitted: Iterable[PlannedRun]) -> None:
        for run in submitted:
            left, step = self._completeness.missing(run), self._step(run.id)
            before, at, times = self._submitted.get(run.id, (left, step, 0))
            self._submitted[run.id] = (left, step, times + 1 if (before, at) == (left, step) else 1)

    def _step(self, run_id: str) -> int:
        return int(self._store.run(run_id).read_progress().get("step", 0))

    def _check_profile(self) -> None:
        from harness.execute.slurm.cluster_limits import check

        if not self._submitter.since and not self._tracker.active:  # once, before anything is submitted
            check(self._profile, self._scheduler)

    def _is_orphan(self, run: PlannedRun) -> bool:
        """Whether a run cannot be submitted because of its teacher.

        If the teacher has failed, the run is given up. If the teacher is open but has no known job yet, the run waits.
        """
        if run.teacher is None or run.teacher not in self._plan.runs:
            return False
        if (failure := self._failed.get(run.teacher)) is not None:
            message = f"its teacher, run {run.teacher}, failed: {failure.message}"
            self._give_up(run.id, Failure(cause="never_started", message=message, attempt=0, ended_at=time.time()))
            return True
        if run.teacher not in self._open:
            return False
        # It may not be known yet whether the teacher's job was accepted. Without its id, the student cannot declare
        # the dependency and must not be submitted.
        tracked = self._tracker.active.get(run.teacher)
        return tracked is None or not tracked.id

    def _close(self) -> None:
        """Remove runs from `_open` that are complete or have reached their pause, even if their jobs still run."""
        self._open -= {run for run in tuple(self._open) if self._is_over(self._plan.runs[run])}

    def _is_complete(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do on a run. One whose folder is damaged is given up."""
        try:
            return self._completeness.is_complete(run)
        except StoreError as error:
            self._give_up(run.id, Failure(cause="damaged", message=str(error), attempt=0, ended_at=time.time()))
            return True

    def _is_over(self, run: PlannedRun) -> bool:
        if self._is_complete(run):
            return True
        folder, limit = self._store.run(run.id), self._submitter.until.get(run.id)
        return limit is not None and folder.read_progress().get("step", -1) >= limit and not folder.is_locked()

    def _limit(self, run_id: str, step: int | None) -> None:
        """Set the step after which a run has to pause, for later submissions and for a job that has the run now."""
        self._submitter.until[run_id] = step
        if (folder := self._store.run(run_id)).spec.exists():
            folder.pause_at(step)

    def _signature(self) -> tuple[object, ...]:
        phases = {run: tracked.job.phase if tracked.job else "" for run, tracked in self._tracker.active.items()}
        return (len(self._open), len(self._failed), sorted(phases.items()))

    def _note(self, text: str) -> None:
        self._notes = (*self._notes, text)


def _listed(jobs: Collection[str]) -> str:
    some = sorted(jobs)
    return "job " + ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
