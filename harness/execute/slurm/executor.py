"""Carry a plan out on a cluster: submit what is missing, look where it stands, try again what died.

The plan may grow meanwhile, as a search finds configurations: what is added is submitted with the next cycle, at once.

Everything that counts is on disk, so that any command on any login node goes on from where things are, and none has to
stay alive: jobs end well by themselves. Each cycle reads the run folders first, then asks the scheduler once for all
jobs. A scheduler that does not answer means that nothing is known, and nothing is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

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
"""Between cycles: fast while things change, slower and slower while they do not."""
FRUITLESS = 10
"""How often a command submits a run without any progress, whatever its jobs say about it."""
RELEASES = 3
"""How often a command releases a job that SLURM failed to launch: each failure may take a node out of service."""
FEW, FEW_EVERY_S = 32, 0.3
"""So few open runs are looked at between the cycles too, in their folders: a search fills the place of one at once."""
JOBS = 4
"""Runs that a search has in jobs at a time where neither the command nor the profile says."""
LAST_LOOKS = 15
"""Looks at jobs whose runs are done, for the causes of their attempts."""


class SlurmExecutor:
    """Carries one plan out with one profile."""

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
        self._placements = JobTracker(store, self._submissions, scheduler)
        self._submitter = Submitter(plan, settings, profile, scheduler, self._placements)
        self._submitter.budget = budget
        self._open = {run.id for run in plan.runs.values() if not self._completeness.is_complete(run)}
        self._failed: dict[str, Failure] = {}
        self._notes: tuple[str, ...] = ()
        self._held_until, self._held_for_s = 0.0, FASTEST_S
        self._watched: set[str] = set()
        """Runs that this command has seen in the hands of a job."""
        self._submitted: dict[str, tuple[Missing, int, int]] = {}
        """By run: what was missing and the step reached when it was last submitted, and how often in that state."""
        self._released: Counter[str] = Counter()
        """By job: how often it was let go on after a failed launch."""
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
        """Have a run leave with a checkpoint after `step`."""
        self._limit(run_id, step)

    def is_open(self, run_id: str) -> bool:
        """Whether a run is still to be carried out."""
        return run_id in self._open

    def failure(self, run_id: str) -> Failure | None:
        """Why a run was given up; None if it was not."""
        return self._failed.get(run_id)

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

    def run(self) -> Iterator[Progress]:
        """Cycle until every run is done or failed; yields a snapshot after each cycle and while it waits."""
        pause, before = FASTEST_S, self._signature()
        while self._open and not self._stopping:
            self.cycle()
            yield self.progress()
            after = self._signature()
            if self._submitter.held_back and not self._placements.active:
                break  # nothing will come back of what was promised
            pause = FASTEST_S if after != before else min(pause * 1.5, SLOWEST_S)
            before = after
            yield from self._wait(pause)
        yield self.progress()

    def _wait(self, pause_s: float) -> Iterator[Progress]:
        """Until the next cycle: after `pause_s`, or soon where a run was added."""
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
        """Look until the jobs of finished runs are over too, a little while: each attempt has its cause then."""
        for number in range(LAST_LOOKS):
            mine = [one for one in self._submissions.open() if self._is_ours(one.intent)]
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
        """Whether a job has every open run and will go on with it."""
        active = self._placements.active
        return all(run in active and not active[run].is_leaving for run in self._open)

    def vanished(self) -> dict[str, TrackedJob]:
        """Runs in jobs of this ablation that its spec no longer asks for."""
        return {
            run: place
            for run, place in self._placements.active.items()
            if run not in self._plan.runs and self._is_ours(place.submission.intent)
        }

    def cycle(self) -> None:
        """Look once at everything, state how attempts ended, and submit what is missing.

        Raises:
            RefusedError: SLURM refuses what the profile asks for.
        """
        self._notes, self._is_due = (), False
        self._close()
        with self._submissions.settling():
            try:
                settled = self._placements.look()
            except UnreachableError as error:
                self._notes = (f"{error}: nothing is known of the jobs for now",)
                return
            self._notes = self._placements.notes
            self._judge(settled)
            self._release()
            self._submit()
            # A job that was cancelled before this command saw it ends an earlier request, not this one.
            self._watched |= {run for run, job in self._placements.active.items() if not job.is_leaving}

    def _judge(self, ended: Mapping[str, TrackedJob]) -> None:
        """Give up what is not worth another attempt; the rest is submitted again."""
        for run in self._open & ended.keys():
            if self._is_over(self._plan.runs[run]):
                self._open.discard(run)
            else:
                self._judge_one(run, ended[run])
        ours = [
            place for run, place in ended.items() if run in self._plan.runs or self._is_ours(place.submission.intent)
        ]
        self._placements.settle(ours)

    def _judge_one(self, run: str, place: TrackedJob) -> None:
        folder = self._store.run(run)
        since = read_request(folder).since
        attempts = folder.attempts.since(since)
        failure = hopeless(attempts, self._profile.retry, place.submission.intent.resources)
        last = attempts[-1].end if attempts else None
        if last is not None and last.cause in ("cancelled", "interrupted"):
            if run not in self._watched:  # a person has ended it, and a person asks for it again
                return
            message = f"its job has ended ({last.message}); the same command goes on from the checkpoint"
            failure = Failure(cause=last.cause, message=message, attempt=0, ended_at=last.ended_at)
        if failure is None:
            self._submitter.since[run] = since
        else:
            self._give_up(run, failure)

    def _release(self) -> None:
        """Let jobs go on that SLURM holds since it failed to launch them: nothing else ever would."""
        active = self._placements.active
        stuck = {
            place.id for run, place in active.items() if run in self._plan.runs and place.job and place.job.is_stuck
        }
        chosen = {job for job in stuck if self._released[job] < RELEASES}
        if chosen:
            self._note(f"SLURM failed to launch {_listed(chosen)}: released")
            self._released.update(chosen)
            with suppress(UnreachableError):
                self._scheduler.release(chosen)
        if left := stuck - chosen:
            fix = "look at the nodes, then `scontrol release JOB`"
            self._note(f"SLURM failed {RELEASES} times to launch {_listed(left)}, and holds it: {fix}")

    def _is_ours(self, intent: Intent) -> bool:
        return is_of(intent, self._plan)

    def _give_up(self, run: str, failure: Failure) -> None:
        self._open.discard(run)
        self._failed[run] = failure

    def _submit(self) -> None:
        unplaced = self._open - self._placements.active.keys()
        idle = [run for run in self._plan.runs.values() if run.id in unplaced and self._is_of_use(run)]
        if not idle or (time.monotonic() < self._held_until and self._placements.active):
            return  # a queue without a job of ours ends the wait
        self._check_profile()
        self._submitter.held_back, before = 0, set(self._placements.active)
        code, awaited = snapshot(self._store.root / "code"), {run.teacher for run in self._plan.runs.values()}
        try:
            for teachers in (True, False):  # students name the jobs that they wait for
                chosen = [run for run in idle if (run.id in awaited) == teachers and not self._is_orphan(run)]
                self._submitter.submit(chosen, self._open, code)
                self._count(run for run in chosen if run.id in self._placements.active)
            self._held_for_s = FASTEST_S
        except HeldBackError as error:
            grown = self._placements.active.keys() - before
            self._held_for_s = FASTEST_S if grown else min(self._held_for_s * 2, 10 * SLOWEST_S)
            self._held_until = time.monotonic() + self._held_for_s
            self._note(f"{error}; tried again in {self._held_for_s:.0f} s")
        except (UnsureError, UnreachableError) as error:
            self._note(str(error))
        if self._submitter.held_back:
            self._note(f"{self._submitter.held_back} jobs are held back by the budget")

    def _is_of_use(self, run: PlannedRun) -> bool:
        """Whether to submit `run`; gives it up where that has changed nothing before.

        This does not depend on why its jobs ended: whatever the cause, known or not, a sweep comes to an end.
        """
        left, step = self._completeness.missing(run), self._step(run.id)
        why = broken_promise(self._store.run(run.id), left, run.steps)
        before, at, times = self._submitted.get(run.id, (left, step, 0))
        if why is None and (before, at) == (left, step) and times >= FRUITLESS:
            why = f"submitted {times} times without progress, still without {left}; see `harness logs {run.id}`"
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

        if not self._submitter.since and not self._placements.active:  # once, before anything is submitted
            check(self._profile, self._scheduler)

    def _is_orphan(self, run: PlannedRun) -> bool:
        """Whether a run's teacher has failed: then so has the run. One that is held back is waited for."""
        if run.teacher is None or run.teacher not in self._plan.runs:
            return False
        if (failure := self._failed.get(run.teacher)) is not None:
            message = f"its teacher, run {run.teacher}, failed: {failure.message}"
            self._give_up(run.id, Failure(cause="never_started", message=message, attempt=0, ended_at=time.time()))
            return True
        if run.teacher not in self._open:
            return False
        # Whether the teacher's job was accepted may not be known yet: a student that cannot name it must not start.
        place = self._placements.active.get(run.teacher)
        return place is None or not place.id

    def _close(self) -> None:
        """Runs that are where they were to get are no longer open, whether or not their jobs are over."""
        self._open = {run for run in self._open if not self._is_over(self._plan.runs[run])}

    def _is_over(self, run: PlannedRun) -> bool:
        if self._completeness.is_complete(run):
            return True
        folder, limit = self._store.run(run.id), self._submitter.until.get(run.id)
        return limit is not None and folder.read_progress().get("step", -1) >= limit and not folder.is_locked()

    def _limit(self, run_id: str, step: int | None) -> None:
        """The step after which a run is to pause: for jobs that are yet to be submitted, and for one that has it."""
        self._submitter.until[run_id] = step
        if (folder := self._store.run(run_id)).spec.exists():
            folder.pause_at(step)

    def _signature(self) -> tuple[object, ...]:
        phases = {run: place.job.phase if place.job else "" for run, place in self._placements.active.items()}
        return (len(self._open), len(self._failed), sorted(phases.items()))

    def _note(self, text: str) -> None:
        self._notes = (*self._notes, text)


def _listed(jobs: Collection[str]) -> str:
    some = sorted(jobs)
    return "job " + ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
