"""The worker: `python -m harness.worker RUN_DIR` executes one attempt at a run, on any machine.

Inline runs, local processes, batch jobs, requeued jobs and debugging all use this command, and so does each of several
processes that share a run's batches (see `harness.parallel.process_group`). The worker needs only the file system: it
reads spec.json and request.json, and writes metrics, checkpoints, weights and a record to the folder.

Exit statuses are in `harness.base.exit_status`. If HARNESS_SCHEDULED is set, a scheduler has assigned the run to this
process, and an attempt that is still alive elsewhere is superseded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.base.boundary import as_sentence
from harness.base.errors import DiskFullError, HarnessError, StoreError, SupersededError
from harness.base.exit_status import BROKEN, DISK_FULL, DONE, STOPPED, SUPERSEDED, USER_ERROR
from harness.base.log import say, say_traceback
from harness.base.part_files import where_it_failed
from harness.node.attempt import AttemptRunner, is_finished, load_request
from harness.node.stop import Stop, stop_signals
from harness.parallel.process_group import (
    ProcessRank,
    StoppedWaitingError,
    leave,
    process_group,
    process_rank,
    start_processes,
)
from harness.runs.folder import RunFolder
from harness.runs.record import Cause, Failure

__all__ = ["BROKEN", "DISK_FULL", "DONE", "STOPPED", "SUPERSEDED", "USER_ERROR", "Stop", "main"]

FAILURE_WAIT_S = 2.0
"""How long rank 0 waits for the failure file of another rank."""


def main(run_dir: Path, stop: Stop | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Execute the run in `run_dir`; returns the exit status.

    Args:
        stop: requests to write a checkpoint and exit; by default, signals do.
        environment: variables that tell the process its rank.
    """
    folder = RunFolder(run_dir)
    try:
        process = process_rank(_processes(folder), environment)
        if process.starts:
            return start_processes(process, folder.path)
        if process.size == 1 and is_finished(folder):
            return DONE  # a job that SLURM took for dead finished it while this process was starting
        with _claimed(folder, process) as number, nullcontext(stop) if stop else stop_signals() as stop_request:
            return _fenced(folder, process, number, stop_request)
    except HarnessError as error:
        say(str(error))
        return DISK_FULL if isinstance(error, DiskFullError) else USER_ERROR


def _fenced(folder: RunFolder, process: ProcessRank, number: int, stop: Stop) -> int:
    if process.rank > 0:
        return _attempt(folder, process, number, stop)
    try:
        status = _attempt(folder, process, number, stop)
        folder.attempts.check(number)
    except SupersededError as error:
        say(str(error))
        folder.attempts.end(number, "superseded", str(error))
        return SUPERSEDED
    if status == DONE:
        folder.attempts.end(number, "completed", "", step=folder.step)
    return status


def _attempt(folder: RunFolder, process: ProcessRank, number: int, stop: Stop) -> int:
    try:
        request = load_request(folder)
        resources = request.experiment.resources
        with process_group(process, folder.path, resources, stop, first_gpu=request.gpu or 0) as world:
            # Use what rank 0 reads: on a network file system, another rank's node may still see older files.
            request, is_done = world.broadcast((request, folder.record_file.exists()))
            attempt = AttemptRunner(folder, request, number, stop, world)
            if is_done:
                attempt.evaluate_again()
                return DONE
            finished = attempt.train()
            if finished and request.phase != "train":
                attempt.evaluate()
        if not finished:
            if process.rank > 0 or folder.is_paused():  # rank 0 decides whether this is a pause or a stop
                return DONE
            return _failed(folder, process, number, "interrupted", "stopped on request", STOPPED)
        return DONE
    except (SupersededError, DiskFullError):
        raise
    except StoppedWaitingError as error:
        return _failed(folder, process, number, "interrupted", str(error), STOPPED)
    except HarnessError as error:
        return _failed(folder, process, number, "user_error", str(error), USER_ERROR)
    except MemoryError:
        return _failed(folder, process, number, "out_of_memory_host", "the process ran out of memory", BROKEN)
    except Exception as error:
        if isinstance(error, OSError) and isinstance(told := as_sentence(error, kind=StoreError), DiskFullError):
            raise told from error
        say_traceback()
        cause: Cause = "out_of_memory_gpu" if type(error).__name__ == "OutOfMemoryError" else "crashed"
        return _failed(folder, process, number, cause, f"{where_it_failed(error)}; see {folder.log}", BROKEN)


def _failed(folder: RunFolder, process: ProcessRank, attempt: int, cause: Cause, message: str, status: int) -> int:
    """Record the failure; returns the exit status.

    With several ranks, rank 0 records the failure of the rank that failed first, not the errors this caused elsewhere.
    """
    say(message)
    failure = Failure(cause=cause, message=message, attempt=attempt, ended_at=time.time())
    if process.rank > 0:
        if not folder.failure_file.exists():
            folder.fail(failure)
        return status
    folder.attempts.check(attempt)
    if process.size > 1 and cause == "crashed" and _appears(folder.failure_file):
        failure = Failure.model_validate({**dict(folder.failure()), "attempt": attempt})
        status = USER_ERROR if failure.cause == "user_error" else status
    if cause != "interrupted" or not os.environ.get("HARNESS_SCHEDULED"):  # otherwise the node's supervisor records why
        raised = status == BROKEN
        folder.attempts.end(attempt, failure.cause, failure.message, step=folder.step, raised=raised)
    folder.fail(failure)
    return status


@contextmanager
def _claimed(folder: RunFolder, process: ProcessRank) -> Iterator[int]:
    """The number of the attempt. Rank 0 holds the folder for all ranks; other ranks get 0."""
    if process.rank > 0:
        yield 0
        return
    with folder.claimed(takeover=bool(os.environ.get("HARNESS_SCHEDULED"))) as number:
        folder.failure_file.unlink(missing_ok=True)
        yield number


def _processes(folder: RunFolder) -> int:
    try:
        return load_request(folder).processes
    except HarnessError:
        return 1  # the attempt reports the error and records it


def _appears(file: Path) -> bool:
    until = time.monotonic() + FAILURE_WAIT_S
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return file.exists()


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
