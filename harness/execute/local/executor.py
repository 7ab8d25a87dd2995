"""Carry out a plan with processes of this machine: start ready runs, retry killed ones, stop cleanly.

The run folders are the only source of truth. A run is done when its record exists, no matter which process wrote it.
If another live process is executing a run (another command, or a worker that outlived its command), the executor
waits for it and never starts the run a second time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from harness.base.errors import StoreError
from harness.base.exit_status import DISK_FULL, DISK_IS_FULL
from harness.base.machine import gpu_count
from harness.execute.executor import Decisions, Progress, fitted
from harness.execute.life import Decision, Facts, damaged
from harness.execute.local.processes import Ended
from harness.planning.completeness import Missing, broken_promise
from harness.planning.plan import Plan
from harness.runs.attempts import Attempt
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.record import Failure
from harness.runs.request import Request
from harness.runs.settings import Settings
from harness.runs.store import Store

POLL_S = 0.25
OTHERS_EVERY_S = 2.0
"""Seconds between checks of the runs that this command has not started; there may be thousands of them."""
MAX_CRASHES = 3
"""A run is given up when its process has died this often. Failures that the run itself records are not retried."""


class Workers(Protocol):
    """Processes or threads that execute runs."""

    jobs: int
    threads: int

    def start(self, folder: Path) -> None:
        """Start a worker on a run folder that is ready for it."""

    def ended(self, timeout_s: float) -> list[Ended]:
        """Workers that ended since the last call, waiting at most `timeout_s` for the first.

        Raises:
            DispatchError: no worker can be started.
        """

    def stop(self) -> None:
        """Ask every live worker to write a checkpoint and exit."""

    def close(self) -> None:
        """Release resources; no further run will be started."""


class LocalExecutor(Decisions):
    """Carries out one plan with one set of workers."""

    def __init__(self, plan: Plan, store: Store, settings: Settings, workers: Workers) -> None:
        self.jobs = workers.jobs
        super().__init__(plan, store, settings)
        self._settings, self._workers = settings, workers
        self._began_at = time.time()
        self._crashes: dict[str, int] = {}
        self._running: dict[str, int] = {}
        """The slot of each running run, 0 to jobs - 1; the slot determines the run's GPU."""
        self._stopping = False
        self._until: dict[str, int | None] = {}
        """The step after which a run has to pause, by run id."""
        self._elsewhere: tuple[str, ...] = ()
        self._checked_at = -OTHERS_EVERY_S
        for run in plan.runs.values():
            self._decide(run)
        # Teachers come first. Otherwise workers would be idle at the end, waiting for a teacher that started late.
        awaited = {run.teacher for run in plan.runs.values()}
        self._order = sorted(plan.runs.values(), key=lambda run: run.id not in awaited)
        self._gpus = gpu_count()

    def add(self, run: PlannedRun, until: int | None = None) -> None:
        """Carry out one more run."""
        if all(one.id != run.id for one in self._order):
            self._order.append(run)
        self._plan.runs[run.id] = run
        self._until[run.id] = until
        if (folder := self._store.run(run.id)).is_locked():
            folder.pause_at(until)  # a worker that outlived its command still has its old limit
        self._failed.pop(run.id, None)
        self._open.add(run.id)
        self._decide(run)

    def pause(self, run_id: str, step: int) -> None:
        """Have a run write a checkpoint and pause after `step`."""
        self._until[run_id] = step  # kept, so that a worker that replaces a dead one pauses there too
        self._store.run(run_id).pause_at(step)

    def progress(self) -> Progress:
        """The current state of all runs."""
        running = {run: self._store.run(run).read_progress() for run in sorted(self._running)}
        total = len(self._plan.runs)
        done = total - len(self._open) - len(self._failed)
        return Progress(done, total, running, dict(self._failed), self._elsewhere)

    def run(self) -> Iterator[Progress]:
        """Carry out the plan. Yields a snapshot a few times a second, and a last one at the end."""
        with ExitStack() as stack:
            stack.callback(self._workers.close)
            while self._running or (self._open and not self._stopping):
                if not self._stopping:
                    self._start_ready()
                for ended in self._workers.ended(POLL_S):
                    self._running.pop(ended.run_id, None)
                    self._decide(self._plan.runs[ended.run_id], ended.status)
                self._check_others()
                yield self.progress()
        yield self.progress()

    def stop(self) -> None:
        """Start no further run, and ask the running workers to write a checkpoint and exit."""
        self._stopping = True
        self._workers.stop()

    def _start_ready(self) -> None:
        for run in self._order:
            # Workers that outlived a killed command occupy this machine's cores too, so they count as jobs.
            if self._stopping or len(self._running) + len(self._elsewhere) >= self._workers.jobs:
                return
            if run.id in self._open and run.id not in self._running:
                facts = self._facts(run)
                if self._apply(run, facts).starts:
                    self._start(run, facts.missing)

    def _decide(self, run: PlannedRun, status: int | None = None) -> Decision:
        """The state of `run`, which is closed if nothing more is to be done. `status`: how its worker just ended."""
        return self._apply(run, self._facts(run, status))

    def _facts(self, run: PlannedRun, status: int | None = None) -> Facts:
        folder = self._store.run(run.id)
        try:
            missing = self._completeness.missing(run)
        except StoreError as error:
            return damaged(error)
        is_locked, until = bool(missing) and folder.is_locked(), self._until.get(run.id)
        step = folder.step
        teacher, teacher_failure = self._teacher(run)
        return Facts(
            missing,
            step,
            until,
            is_running=run.id in self._running or is_locked,
            is_locked=is_locked,
            is_begun=folder.progress.exists(),
            is_cancelled=not self._stopping and folder.cancelled_since(self._began_at),
            hopeless=None if status is None or not missing else self._hopeless(folder, status),
            broken_promise=None if status is None else broken_promise(folder, missing),
            starts=self._starts_of(run.id, missing, step),
            teacher=teacher,
            teacher_failure=teacher_failure,
        )

    def _hopeless(self, folder: RunFolder, status: int) -> Failure | None:
        """Why a run whose worker has just ended is given up. Failures that the run itself records are not retried.

        A process that died without an exit record was killed, or ran out of memory. Its run resumes from its
        checkpoint, unless its process has died too often.
        """
        if folder.failure_file.exists():
            failure = folder.failure()
            if failure.cause == "out_of_memory_gpu" and self._can_shrink(folder):
                return None
            return None if failure.cause == "interrupted" else failure
        if self._stopping or folder.is_locked() or folder.is_paused():
            return None
        if status == DISK_FULL:
            return Failure(cause="crashed", message=f"{DISK_IS_FULL} ({folder.log})", attempt=0, ended_at=0.0)
        self._crashes[folder.id] = self._crashes.get(folder.id, 0) + 1
        if self._crashes[folder.id] < MAX_CRASHES:
            return None
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        message = f"its process died {MAX_CRASHES} times, last by {how}; see {folder.log}"
        return Failure(cause="crashed", message=message, attempt=0, ended_at=0.0)

    def _attempts(self, folder: RunFolder) -> list[Attempt]:
        """The attempts that have ended since this command began."""
        ended = [attempt for attempt in folder.attempts.all() if attempt.end is not None]
        return [attempt for attempt in ended if attempt.end and attempt.end.ended_at >= self._began_at]

    def _can_shrink(self, folder: RunFolder) -> bool:
        """Whether a run that is out of GPU memory will be tried with a smaller micro-batch than before."""
        attempts, experiment = self._attempts(folder), self._plan.runs[folder.id].experiment
        sizes = [
            fitted(experiment, some, experiment.resources.processes).resources.micro_batch_size
            for some in (attempts[:-1], attempts)
        ]
        return sizes[0] != sizes[1]

    def _start(self, run: PlannedRun, missing: Missing) -> None:
        folder = self._store.run(run.id)
        slot = min(set(range(self._workers.jobs)) - set(self._running.values()))
        gpu = slot * run.experiment.resources.processes % self._gpus if self._gpus else None
        experiment = fitted(run.experiment, self._attempts(folder), run.experiment.resources.processes)
        request = Request.of(experiment, run.id, run.teacher, self._settings, self._workers.threads, gpu)
        folder.prepare(run.identity, request.written())
        folder.pause_at(self._until.get(run.id))
        self._count_start(run.id, missing)
        self._workers.start(folder.path)
        self._running[run.id] = slot

    def _check_others(self) -> None:
        if time.monotonic() - self._checked_at < OTHERS_EVERY_S:
            return
        self._checked_at = time.monotonic()
        for run_id in self._open - self._running.keys():
            self._decide(self._plan.runs[run_id])
        others = sorted(self._open - self._running.keys())
        self._elsewhere = tuple(run_id for run_id in others if self._store.run(run_id).is_locked())
