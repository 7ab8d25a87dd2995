"""The supervisor of a job: each task of each job runs `python -m harness.execute.slurm.node SUBMISSION_DIR`.

It executes the job's runs as worker processes, monitors them, and records how each attempt ended. Before the time
limit, or when the job is preempted, it has the workers write a checkpoint and requeues the job, so no process has to
stay alive on the head. It does not import torch, so it survives when a worker runs out of memory, and can record that.

Exit status: 0 if every run is done, or paused as a search requested; 1 if some are not; 2 if this node cannot read the
submission or its store; 74 if the disk of the store is full, which no file can say then.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness.base.errors import DiskFullError, HarnessError
from harness.base.exit_status import DISK_FULL, DISK_IS_FULL, DONE, SUPERSEDED
from harness.base.files import read_json, write_json
from harness.base.signals import STOPPING, handled
from harness.execute.life import Action, Decision, Facts, Life, decide
from harness.execute.local.processes import Ended, LocalWorkers
from harness.execute.slurm.job import StopReason, out_of_memory, scontrol, stop_reason
from harness.execute.slurm.rank_workers import RankWorkers
from harness.execute.slurm.retry_policy import hopeless
from harness.execute.slurm.submission_log import Submission, load
from harness.planning.completeness import Missing, left_to_do
from harness.runs.attempts import restarts, this_job
from harness.runs.folder import RunFolder
from harness.runs.record import AttemptStart, Cause
from harness.runs.request import read_request
from harness.runs.store import Store

SOME_ARE_NOT, UNSEEN = 1, 2
POLL_S = 0.5
ALLOWANCE_EVERY_S = 10.0


class Supervisor:
    """Executes the runs of one job and records how their attempts end."""

    def __init__(self, submission: Submission, task: int, rank: int) -> None:
        self._submission, self._intent = submission, submission.intent
        self._task, self._rank = task, rank
        self._store = Store(self._intent.store)
        self._job = this_job()
        self._started = time.time()
        self._signalled = False
        self._stop_reason: StopReason | None = None
        """Why the workers were asked to stop; None until then."""
        self._superseded = self._is_disk_full = False
        self._waiting = [run for run in self._intent.tasks[task] if self._is_assigned(run)]
        self._all = tuple(self._waiting)
        self._running: dict[str, int] = {}
        """The slot of each running run, which determines its GPU."""
        self._allowance_checked_at = time.monotonic()
        self._workers = self._create_workers()
        if rank == 0:
            self._record_preemptions()

    def work(self) -> int:
        """Execute the runs; returns the exit status."""
        with handled(STOPPING, self._signal):
            while self._running or (self._waiting and self._stop_reason is None):
                self._start_ready()
                for ended in self._workers.ended(POLL_S):
                    self._settle(ended)
                self._check_stop()
            self._check_stop()  # a signal may have arrived after the last worker ended
            self._workers.close()
            if self._rank == 0:
                self._finish()
        if self._is_disk_full:
            return DISK_FULL
        if self._intent.phase == "train":
            # The evaluation job starts only if this job succeeds. Trained runs must not wait for the job's other runs.
            # A paused run is not trained yet, so its evaluation must not start.
            return DONE if any(self._is_done(run) for run in self._all) or not self._all else SOME_ARE_NOT
        over = self._is_over if self._intent.phase == "run" else self._is_done
        return DONE if all(over(run) for run in self._all) else SOME_ARE_NOT

    def _create_workers(self) -> LocalWorkers | RankWorkers:
        resources, profile = self._intent.resources, self._intent.profile
        threads = max(resources.cpus_per_task // profile.at_a_time, 1)
        os.environ |= {
            "HARNESS_SCHEDULED": "1",
            "HARNESS_GPUS": str(resources.gpus / profile.at_a_time),
            "HARNESS_CORES": str(resources.processes * resources.cpus_per_task / profile.at_a_time),
        }
        if resources.processes > 1:
            return RankWorkers(threads)
        return LocalWorkers(profile.at_a_time, threads, in_job=True)

    def _is_assigned(self, run: str) -> bool:
        """Whether the run still belongs to this submission and is unfinished."""
        try:
            owner = read_request(self._folder(run)).submission
            return owner in (self._intent.id, self._intent.training) and not self._is_over(run)
        except HarnessError as error:
            print(f"harness: {error}", file=sys.stderr)
            return False

    def _decide(self, run: str) -> Decision:
        """The state of a run that has no worker at this moment, as far as this job's phase is concerned."""
        folder = self._folder(run)
        request = read_request(folder)
        left = left_to_do(folder)
        teacher = request.teacher_run
        is_taught = teacher is None or self._store.run(teacher).weights.exists()
        return decide(
            Facts(
                Missing() if self._intent.phase == "train" and not left.training else left,
                step=folder.step,
                until=folder.pause_step(),
                is_begun=folder.attempts.newest() > 0,
                hopeless=hopeless(
                    folder.attempts.since(request.since), self._intent.profile.retry, self._intent.resources
                ),
                teacher=Life.DONE if is_taught else Life.PENDING,
            )
        )

    def _is_done(self, run: str) -> bool:
        return self._decide(run).state is Life.DONE

    def _is_over(self, run: str) -> bool:
        """Whether no work is left: the run is done, or paused where a search requested it."""
        return self._decide(run).action is Action.NONE

    def _start_ready(self) -> None:
        at_a_time = 1 if self._intent.resources.processes > 1 else self._intent.profile.at_a_time
        while self._waiting and len(self._running) < at_a_time and self._stop_reason is None:
            run = self._waiting.pop(0)
            decision = self._decide(run)
            if self._intent.phase == "evaluate" and decision.action is not Action.EVALUATE:
                continue  # its training ended early; a later training job resumes it
            if decision.state is Life.WAITING:
                self._record_no_teacher(run)
            if not decision.starts:  # the executor gives it up; the job's other runs get their turn
                continue
            self._running[run] = min(set(range(at_a_time)) - set(self._running.values()))
            # Every task of the job writes the same content, and its worker reads it at once.
            self._write_request(run)
            self._workers.start(self._folder(run).path)

    def _write_request(self, run: str) -> None:
        """Overwrite the run's request with this job's threads, phase, processes and GPU."""
        file, resources, profile = self._folder(run).request, self._intent.resources, self._intent.profile
        own: dict[str, Any] = {
            "threads": max(resources.cpus_per_task // profile.at_a_time, 1),
            "phase": self._intent.phase,
        }
        if resources.processes > 1 or self._intent.phase == "evaluate":
            own["processes"] = resources.processes
        elif resources.gpus:
            own["gpu"] = self._running[run] % resources.gpus
        write_json(file, read_json(file) | own)

    def _settle(self, ended: Ended) -> None:
        self._running.pop(ended.run_id, None)
        folder = self._folder(ended.run_id)
        if ended.status == SUPERSEDED:
            self._superseded, self._stop_reason = True, StopReason("superseded", False)
            self._workers.stop()
        elif ended.status == DISK_FULL:
            self._stop_reason = self._stop_reason or StopReason("crashed", False, DISK_IS_FULL)
            self._is_disk_full = True
            self._workers.stop()
        elif -ended.status in STOPPING:  # SLURM signals every process of a job, even one without a handler yet
            self._signalled = True
        elif ended.status == DONE and folder.is_paused():
            pass  # it has written its checkpoint and its exit record
        elif not self._is_done(ended.run_id) and not folder.failure_file.exists():
            self._handle_crash(folder, ended.status)

    def _handle_crash(self, folder: RunFolder, status: int) -> None:
        """Record how a worker died that wrote no exit record, and retry at once if that may help. Rank 0 only.

        A run with several processes is not retried here: its other ranks have exited, and only a new job starts all.
        """
        if self._rank:
            return
        cause: Cause = "out_of_memory_host" if status == -signal.SIGKILL and out_of_memory() else "crashed"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._record_end(folder, cause, f"its process died by {how}")
        alone = self._intent.resources.processes == 1
        again = cause == "crashed" and alone and status != DONE and self._stop_reason is None
        if again and self._decide(folder.id).starts:
            self._waiting.insert(0, folder.id)

    def _record_no_teacher(self, run: str) -> None:
        if self._rank == 0:
            reason = f"its teacher, run {read_request(self._folder(run)).teacher_run}, is not trained"
            attempts = self._folder(run).attempts
            attempts.end(attempts.begin(), "no_teacher", reason)
            print(f"harness: run {run} cannot start: {reason}", file=sys.stderr)

    def _record_end(self, folder: RunFolder, cause: Cause, message: str) -> None:
        """Record the cause of this job's attempts that wrote no exit record."""
        for start in folder.attempts.open():
            if start.job == self._job and start.restart == restarts():
                folder.attempts.end(start.number, cause, message, step=folder.step)

    def _check_stop(self) -> None:
        """Check for a stop: cancellation, a signal, or a used-up allowance. Asks the workers to stop, at most once."""
        if self._stop_reason is not None:
            return
        # The order matters: `harness cancel` settles the task before it calls scancel, so a cancelled job is
        # recognised here before the controller is asked about the signal.
        if self._task in self._submission.settled():
            self._stop_reason = StopReason("cancelled", False)
        elif self._signalled:
            self._stop_reason = stop_reason(self._job, self._intent.profile.grace_s)
        elif self._is_spent():
            self._stop_reason = StopReason("interrupted", False, "its share of the GPU-hours is used up")
        if self._stop_reason is not None:
            print(f"harness: stopping ({self._stop_reason.cause or 'SLURM ends the job'})", file=sys.stderr, flush=True)
            self._workers.stop()

    def _is_spent(self) -> bool:
        allowed, gpus = self._intent.allowance_gpu_hours, self._intent.resources.gpus
        if allowed is None or not gpus or time.monotonic() - self._allowance_checked_at < ALLOWANCE_EVERY_S:
            return False
        self._allowance_checked_at = time.monotonic()
        return self._earlier_hours() + gpus * (time.time() - self._started) / 3600 >= allowed

    def _earlier_hours(self) -> float:
        """GPU-hours that this job used before its last restart."""
        ended = [attempt for run in self._all for attempt in self._folder(run).attempts.all() if attempt.end]
        return sum(
            attempt.start.gpus * (attempt.end.ended_at - attempt.start.started_at) / 3600
            for attempt in ended
            if attempt.end and _is_earlier(attempt.start, self._job)
        )

    def _finish(self) -> None:
        """Record the causes of unfinished attempts, and requeue the job if a run is left that is worth retrying."""
        stop = self._stop_reason
        if stop is None or self._superseded:
            return
        left = [run for run in self._all if not self._is_over(run)]
        if stop.cause is None:
            self._submission.note_leaving(self._task, restarts())
        else:
            for run in left:
                self._record_end(self._folder(run), stop.cause, stop.message)
        may_requeue = stop.requeue and self._intent.profile.requeue
        if may_requeue and any(self._decide(run).starts for run in left):
            scontrol("requeue", self._job)

    def _record_preemptions(self) -> None:
        """Record earlier attempts as preempted if SLURM signalled them without a reason: it has restarted the job."""
        for run in self._all:
            for start in self._folder(run).attempts.open():
                if _is_earlier(start, self._job) and self._submission.was_asked_to_leave(self._task, start.restart):
                    self._folder(run).attempts.end(start.number, "preempted", "SLURM requeued its job")

    def _folder(self, run: str) -> RunFolder:
        return self._store.run(run)

    def _signal(self, *_: object) -> None:
        self._signalled = True


def _is_earlier(start: AttemptStart, job: str) -> bool:
    return start.job == job and start.restart < restarts()


def main(folder: Path) -> int:
    """Execute this task of the submission in `folder`; returns the exit status."""
    try:
        Store(folder.resolve().parents[1]).check()
        submission = load(folder)
        task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
        if submission.is_closed or task in submission.settled():
            print("harness: this submission was withdrawn or cancelled: nothing to do", file=sys.stderr)
            return DONE
        return Supervisor(submission, task, int(os.environ.get("SLURM_PROCID", "0"))).work()
    except HarnessError as error:
        where = os.environ.get("SLURMD_NODENAME", "this node")
        print(f"harness: on {where}: {error}", file=sys.stderr)
        return DISK_FULL if isinstance(error, DiskFullError) else UNSEEN


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
