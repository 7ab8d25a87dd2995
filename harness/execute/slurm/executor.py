"""Carry out a plan on a cluster: submit missing runs, track their jobs, resubmit runs whose jobs died.

A search may add runs to the plan meanwhile; a new run is submitted in the next cycle, which starts soon after.

All state is on disk. Any command on any login node can continue the work, and no command has to stay alive, because
jobs finish by themselves. Each cycle reads the run folders first, then queries the scheduler once for all jobs. If the
scheduler does not answer, the state of jobs is unknown and the cycle does nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from harness.base.errors import StoreError
from harness.config.profile import Profile
from harness.execute.executor import Decisions, Progress
from harness.execute.life import Decision, Facts, damaged
from harness.execute.slurm.cluster_limits import check
from harness.execute.slurm.gpu_hours import GpuHourBudget
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob, has_local_process
from harness.execute.slurm.jobs import is_of, vanished
from harness.execute.slurm.retry_policy import hopeless
from harness.execute.slurm.scheduler import HeldBackError, Scheduler, UnreachableError, UnsureError
from harness.execute.slurm.snapshot import snapshot
from harness.execute.slurm.submission_log import SubmissionLog
from harness.execute.slurm.submitter import Submitter
from harness.planning.completeness import broken_promise, is_requested
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.record import Failure
from harness.runs.request import read_request
from harness.runs.settings import Settings
from harness.runs.store import Store

FASTEST_S, SLOWEST_S = 1.0, 30.0
"""Shortest and longest pause between cycles, in seconds. The pause grows while nothing changes."""
RELEASES = 3
"""How often a command releases a job that SLURM failed to launch. Each failure may take a node out of service."""
FEW, FEW_EVERY_S = 32, 0.3
"""With at most FEW open runs, their folders are also checked between cycles, every FEW_EVERY_S seconds, so that a
search can replace a finished run at once."""
JOBS = 4
"""Number of runs that a search keeps in jobs if neither the command nor the profile gives one."""
LAST_LOOKS = 15
"""Maximum number of cycles that `wrap_up` waits for the causes of finished runs' attempts."""


class SlurmExecutor(Decisions):
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
        super().__init__(plan, store, settings)
        self._profile, self._scheduler = profile, scheduler
        self._submissions = SubmissionLog(store)
        self._tracker = JobTracker(store, self._submissions, scheduler)
        self._submitter = Submitter(plan, settings, profile, scheduler, self._tracker)
        self._submitter.budget = budget
        self._notes: tuple[str, ...] = ()
        self._held_until, self._held_for_s = 0.0, FASTEST_S
        self._began_at = time.time()
        self._watched: set[str] = set()
        """Ids of active jobs that this command has seen."""
        self._released: Counter[str] = Counter()
        """By job: how often it was released after a failed launch."""
        self._stopping, self._is_due = False, False
        self._close(plan.runs)

    def add(self, run: PlannedRun, until: int | None = None) -> None:
        """Carry out one more run."""
        self._plan.runs[run.id] = run
        self._failed.pop(run.id, None)
        self._limit(run.id, until)
        self._open.add(run.id)
        self._decide(run)
        self._is_due |= run.id in self._open

    def pause(self, run_id: str, step: int) -> None:
        """Have a run write a checkpoint and pause after `step`."""
        self._limit(run_id, step)

    def progress(self) -> Progress:
        """The current state of all runs."""
        running = {
            run: self._store.run(run).read_progress()
            for run, tracked in self._tracker.active.items()
            if run in self._open and tracked.job is not None and tracked.job.phase == "running"
        }
        total = len(self._plan.runs)
        waiting = sum(run in self._open and bool(tracked.id) for run, tracked in self._tracker.active.items()) - len(
            running
        )
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
                self._close(self._open)
            yield self.progress()

    def wrap_up(self) -> None:
        """Wait a short while for the jobs of finished runs to end, so that every attempt gets its cause."""
        for number in range(LAST_LOOKS):
            mine = [one for one in self._submissions.open() if is_of(one.intent, self._plan)]
            if self._stopping or not mine or self._open:
                return
            if number:
                time.sleep(FASTEST_S)
            self.cycle()

    def stop(self) -> None:
        """Have `run` return. Jobs continue."""
        self._stopping = True

    def without_jobs(self) -> tuple[str, ...]:
        """Open runs that no job will finish: SLURM has accepted none for all that they lack, or it was cancelled."""
        active, finishing = self._tracker.active, self._tracker.finishing
        some = {run for run in self._open & finishing if active[run].id and not active[run].is_leaving}
        runs = [self._plan.runs[run] for run in sorted(some)]
        done = {run.id for run in runs if is_requested(self._store.run(run.id), self._completeness.missing(run))}
        return tuple(sorted(self._open - done))

    def vanished(self) -> list[str]:
        """Runs in jobs of this ablation that its spec no longer contains."""
        return vanished(self._plan, self._tracker.active)

    def cycle(self) -> None:
        """Query all jobs once, record how attempts ended, and submit missing runs.

        Raises:
            RefusedError: SLURM refuses the profile's resources.
        """
        self._notes, self._is_due = (), False
        self._close(self._tracker.active)  # `_submit` decides about runs without a job
        with self._submissions.settling():
            try:
                ended = self._tracker.look()
            except UnreachableError as error:
                self._notes = (f"{error}: the states of jobs are unknown for now",)
                return
            self._notes = self._tracker.notes
            for run in self._open & ended.keys():
                self._decide(self._plan.runs[run], ended[run][-1])
            self._tracker.settle(
                tracked
                for run, jobs in ended.items()
                for tracked in jobs
                if run in self._plan.runs or is_of(tracked.submission.intent, self._plan)
            )
            self._release()
            self._submit()
            # If a job was cancelled before this command saw it, the cancellation belongs to an earlier request.
            self._watched |= {job.id for job in self._tracker.active.values() if not job.is_leaving}

    def _decide(self, run: PlannedRun, ended: TrackedJob | None = None) -> Decision:
        """The state of `run`, which is closed if nothing more is to be done. `ended`: its job, which has just ended."""
        return self._apply(run, self._facts(run, ended))

    def _facts(self, run: PlannedRun, ended: TrackedJob | None = None) -> Facts:
        folder, tracked = self._store.run(run.id), self._tracker.active.get(run.id)
        until = self._submitter.until.get(run.id)
        try:
            missing = self._completeness.missing(run)
        except StoreError as error:
            return damaged(error)
        if tracked is not None:
            is_queued = tracked.job is None or tracked.job.phase == "pending"
            step, is_locked = (folder.step, folder.is_locked()) if until is not None else (0, False)
            busy = Facts(missing, step, until, is_queued, not is_queued, is_locked)
            return replace(busy, is_leaving=tracked.is_leaving)
        step = folder.step
        cancelled, hopeless = (None, None) if ended is None else self._ends(folder, ended)
        teacher, teacher_failure = self._teacher(run)
        # It may not be known yet whether the teacher's job was accepted, or only its evaluation is left, which SLURM
        # cancels. Without the id of a job that trains it, the student cannot declare the dependency and must wait.
        training = None if run.teacher is None else self._tracker.training(run.teacher)
        return Facts(
            missing,
            step,
            until,
            is_running=has_local_process(folder),
            is_locked=until is not None and folder.is_locked(),
            is_begun=folder.attempts.newest() > 0,
            is_cancelled=folder.cancelled_since(self._began_at),
            cancelled=cancelled,
            hopeless=hopeless,
            broken_promise=broken_promise(folder, missing),
            starts=self._starts_of(run.id, missing, step),
            teacher=teacher,
            teacher_failure=teacher_failure,
            teacher_has_job=training is not None and bool(training.id),
        )

    def _ends(self, folder: RunFolder, ended: TrackedJob) -> tuple[Failure | None, Failure | None]:
        """Whether the user stopped a run whose job has ended, and whether the retry policy gives it up."""
        since = read_request(folder).since
        attempts = folder.attempts.since(since)
        last = attempts[-1].end if attempts else None
        if last is None or last.cause not in ("cancelled", "interrupted"):
            self._submitter.since[folder.id] = since
            return None, hopeless(attempts, self._profile.retry, ended.submission.intent.resources)
        # Nobody says when `scancel` was called. If the job ended before this command saw it active, this command is the
        # user's request to resume it.
        if attempts[-1].start.job not in self._watched:
            return None, None
        message = f"its job has ended ({last.message}); repeat the command to resume from the checkpoint"
        return Failure(cause=last.cause, message=message, attempt=0, ended_at=last.ended_at), None

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

    def _submit(self) -> None:
        without = self._open - self._tracker.active.keys()
        idle = [run for run in self._plan.runs.values() if run.id in without]
        if not idle or (time.monotonic() < self._held_until and self._tracker.active):
            return  # without an active job of this plan, retry at once
        if not self._submitter.since and not self._tracker.active:  # once, before anything is submitted
            check(self._profile, self._scheduler)
        self._submitter.held_back, before = 0, set(self._tracker.active)
        code, awaited = snapshot(self._store.root / "code"), {run.teacher for run in self._plan.runs.values()}
        try:
            for teachers in (True, False):  # teachers first: a student's submission names its teacher's job
                some = [(run, self._decide(run)) for run in idle if (run.id in awaited) == teachers]
                chosen = [(run, decision.action) for run, decision in some if decision.starts]
                self._submitter.submit(chosen, self._open, code)
            self._held_for_s = FASTEST_S
        except HeldBackError as error:
            grown = self._tracker.active.keys() - before
            self._held_for_s = FASTEST_S if grown else min(self._held_for_s * 2, 10 * SLOWEST_S)
            self._held_until = time.monotonic() + self._held_for_s
            self._note(f"{error}; retrying in {self._held_for_s:.0f} s")
        except (UnsureError, UnreachableError) as error:
            self._note(str(error))
        for run in idle:
            if run.id in self._tracker.active:
                self._count_start(run.id, self._completeness.missing(run))
        if self._submitter.held_back:
            self._note(f"{self._submitter.held_back} jobs are held back by the budget")

    def _close(self, runs: Iterable[str]) -> None:
        """Remove those of `runs` from `_open` that are complete or have reached their pause, even if their jobs run."""
        for run in self._open.intersection(runs):
            self._decide(self._plan.runs[run])

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
