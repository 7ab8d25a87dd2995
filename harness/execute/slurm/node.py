"""The node's side of a submission: each task of each job runs `python -m harness.execute.slurm.node SUBMISSION_DIR`.

It carries the job's runs out as worker processes, stands by while they train, and says how each attempt ended. Before
the time limit, or when the job is preempted, it has them write a checkpoint and queues the job again, so that nothing
has to be alive on the head. It imports no torch: where a worker dies for memory, it lives and can tell.

Exit status: 0 every run is done, or paused where a search asked it to, 1 some are not, 2 the submission or its store
cannot be seen from this node.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import read_json, write_json
from harness.base.signals import STOPPING, handled
from harness.execute.local.processes import Ended, LocalWorkers
from harness.execute.slurm.job import Leaving, out_of_memory, reason, scontrol
from harness.execute.slurm.rank_workers import RankWorkers
from harness.execute.slurm.retry_policy import hopeless
from harness.execute.slurm.submission_log import Submission, load
from harness.planning.completeness import is_complete
from harness.runs.attempts import restarts, this_job
from harness.runs.record import AttemptStart, Cause
from harness.runs.request import read_request
from harness.runs.store import RunFolder, Store

DONE, SOME_ARE_NOT, UNSEEN = 0, 1, 2
SUPERSEDED = 76
"""Exit status of a worker whose run a newer attempt has taken over; as in `harness.worker`, which imports torch."""
POLL_S = 0.5
ALLOWANCE_EVERY_S = 10.0


class Supervisor:
    """Carries out the runs of one job."""

    def __init__(self, submission: Submission, task: int, rank: int) -> None:
        self._submission, self._intent = submission, submission.intent
        self._task, self._rank = task, rank
        self._store = Store(self._intent.store)
        self._job = this_job()
        self._started = time.time()
        self._signalled = False
        self._leaving: Leaving | None = None
        """Why the workers were asked to leave, once they were."""
        self._superseded = False
        self._waiting = [run for run in self._intent.tasks[task] if self._is_mine(run)]
        self._all = tuple(self._waiting)
        self._running: dict[str, int] = {}
        """The slot of each running run."""
        self._looked_at = time.monotonic()
        self._workers = self._hire()
        if rank == 0:
            self._tell_of_earlier()

    def work(self) -> int:
        """Carry the runs out; returns the exit status."""
        with handled(STOPPING, self._signal):
            while self._running or (self._waiting and self._leaving is None):
                self._start_ready()
                for ended in self._workers.ended(POLL_S):
                    self._settle(ended)
                self._mind()
            self._mind()
            self._workers.close()
            if self._rank == 0:
                self._conclude()
        if self._intent.phase == "train":
            # The job that evaluates starts only if this one ends well. What is trained must not wait for the others; a
            # run that has paused is not trained, and its evaluation must not start.
            return DONE if any(self._is_done(run) for run in self._all) or not self._all else SOME_ARE_NOT
        over = self._is_over if self._intent.phase == "run" else self._is_done
        return DONE if all(over(run) for run in self._all) else SOME_ARE_NOT

    def _hire(self) -> LocalWorkers | RankWorkers:
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

    def _is_mine(self, run: str) -> bool:
        """Whether this submission still has the run, and something is left to do."""
        try:
            owner = read_request(self._folder(run)).submission
            return owner in (self._intent.id, self._intent.training) and not self._is_over(run)
        except HarnessError as error:
            print(f"harness: {error}", file=sys.stderr)
            return False

    def _is_done(self, run: str) -> bool:
        folder = self._folder(run)
        if self._intent.phase == "train" and folder.weights.exists():
            return True
        return is_complete(folder)

    def _is_over(self, run: str) -> bool:
        """Whether nothing is left to do: it is done, or as far as a search wants it for now."""
        return self._is_done(run) or self._folder(run).is_paused()

    def _start_ready(self) -> None:
        at_a_time = 1 if self._intent.resources.processes > 1 else self._intent.profile.at_a_time
        while self._waiting and len(self._running) < at_a_time and self._leaving is None:
            run = self._waiting.pop(0)
            if not self._hope(self._folder(run)):  # the head gives it up; others of the job have their turn
                continue
            if self._intent.phase == "evaluate" and not self._folder(run).weights.exists():
                continue  # its training has ended early; a job that trains it takes it from there
            if (reason := self._not_ready(run)) is not None:
                self._never_started(run, reason)
                continue
            self._running[run] = min(set(range(at_a_time)) - set(self._running.values()))
            self._request(run)  # the same in every task, each of whose workers reads it at once
            self._workers.start(self._folder(run).path)

    def _not_ready(self, run: str) -> str | None:
        teacher = read_request(self._folder(run)).teacher_run
        if teacher and not self._store.run(teacher).weights.exists():
            return f"its teacher, run {teacher}, is not trained"
        return None

    def _request(self, run: str) -> None:
        """Lay what this job has over the run's request."""
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
            self._superseded, self._leaving = True, Leaving("superseded", False)
            self._workers.stop()
        elif -ended.status in STOPPING:  # SLURM signals every process of a job, those too that do not mind it yet
            self._signalled = True
        elif ended.status == DONE and folder.is_paused():
            pass  # it has its checkpoint, and has said so
        elif not self._is_done(ended.run_id) and not folder.failure_file.exists():
            self._died(folder, ended.status)

    def _died(self, folder: RunFolder, status: int) -> None:
        """A worker that went without a word: say how, and try again at once where that may be of use.

        One of several processes of a run is not tried again here: the others have left, and only a new job brings them.
        """
        if self._rank:
            return
        cause: Cause = "out_of_memory_host" if status == -signal.SIGKILL and out_of_memory() else "crashed"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._end(folder, cause, f"its process died by {how}")
        alone = self._intent.resources.processes == 1
        if cause == "crashed" and alone and self._leaving is None and self._hope(folder):
            self._waiting.insert(0, folder.id)

    def _hope(self, folder: RunFolder) -> bool:
        since = read_request(folder).since
        return hopeless(folder.attempts.since(since), self._intent.profile.retry, self._intent.resources) is None

    def _never_started(self, run: str, reason: str) -> None:
        if self._rank == 0:
            attempts = self._folder(run).attempts
            attempts.end(attempts.begin(), "never_started", reason)
            print(f"harness: run {run} cannot start: {reason}", file=sys.stderr)

    def _end(self, folder: RunFolder, cause: Cause, message: str) -> None:
        """State the cause for this job's attempts that have left none themselves."""
        for start in folder.attempts.open():
            if start.job == self._job and start.restart == restarts():
                folder.attempts.end(start.number, cause, message, step=int(folder.read_progress().get("step", 0)))

    def _mind(self) -> None:
        """Look at signals and the allowance; ask the workers to leave once."""
        if self._leaving is not None:
            return
        if self._task in self._submission.settled():  # `harness cancel` says so before SLURM signals
            self._leaving = Leaving("cancelled", False)
        elif self._signalled:
            self._leaving = reason(self._job, self._intent.profile.grace_s)
        elif self._is_spent():
            self._leaving = Leaving("interrupted", False, "its share of the GPU-hours is used up")
        if self._leaving is not None:
            print(f"harness: leaving ({self._leaving.cause or 'SLURM ends the job'})", file=sys.stderr, flush=True)
            self._workers.stop()

    def _is_spent(self) -> bool:
        allowed, gpus = self._intent.allowance_gpu_hours, self._intent.resources.gpus
        if allowed is None or not gpus or time.monotonic() - self._looked_at < ALLOWANCE_EVERY_S:
            return False
        self._looked_at = time.monotonic()
        return self._earlier_hours() + gpus * (time.time() - self._started) / 3600 >= allowed

    def _earlier_hours(self) -> float:
        """GPU-hours of this job's earlier restarts."""
        ended = [attempt for run in self._all for attempt in self._folder(run).attempts.all() if attempt.end]
        return sum(
            attempt.start.gpus * (attempt.end.ended_at - attempt.start.started_at) / 3600
            for attempt in ended
            if attempt.end and _is_earlier(attempt.start, self._job)
        )

    def _conclude(self) -> None:
        """State the causes, and queue the job again where it has work left that it may go on with."""
        leaving = self._leaving
        if leaving is None or self._superseded:
            return
        left = [run for run in self._all if not self._is_over(run)]
        if leaving.cause is None:
            self._submission.note_leaving(self._task, restarts())
        else:
            for run in left:
                self._end(self._folder(run), leaving.cause, leaving.message)
        going_on = leaving.goes_on and self._intent.profile.requeue
        if going_on and any(self._hope(self._folder(run)) for run in left):
            scontrol("requeue", self._job)

    def _tell_of_earlier(self) -> None:
        """SLURM has started the job again: attempts that it had asked to leave, without saying why, were preempted."""
        for run in self._all:
            for start in self._folder(run).attempts.open():
                if _is_earlier(start, self._job) and self._submission.was_asked_to_leave(self._task, start.restart):
                    self._folder(run).attempts.end(start.number, "preempted", "SLURM queued its job again")

    def _folder(self, run: str) -> RunFolder:
        return self._store.run(run)

    def _signal(self, *_: object) -> None:
        self._signalled = True


def _is_earlier(start: AttemptStart, job: str) -> bool:
    return start.job == job and start.restart < restarts()


def main(folder: Path) -> int:
    """Carry out this task's share of the submission in `folder`; returns the exit status."""
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
        return UNSEEN


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
