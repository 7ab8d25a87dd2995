"""The node side: `python -m harness.worker RUN_DIR` carries one run out, whatever started it and wherever it runs.

Inline runs, local processes, batch jobs, requeued jobs and debugging all use this command, and so does each of several
processes that share a run's batches (see `harness.parallel.process_group`). It needs nothing but the file system: it
reads spec.json and request.json, and leaves metrics, checkpoints, weights and a record in the folder.
Exit status: 0 done or paused where it was asked to, 2 a mistake of the user, 75 stopped on request (run it again to go
on), 76 a newer attempt has taken over, 1 anything else. With HARNESS_SCHEDULED set a scheduler has given the run to
this process: an attempt that is still alive elsewhere is superseded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.base.errors import HarnessError, SupersededError
from harness.base.log import say, say_traceback
from harness.node.attempt import AttemptRunner, load_request
from harness.node.stop import Stop, stop_signals
from harness.parallel.process_group import ProcessRank, process_group, process_rank, start_processes
from harness.runs.record import Cause, Failure
from harness.runs.store import RunFolder

__all__ = ["BROKEN", "DONE", "STOPPED", "SUPERSEDED", "USER_ERROR", "Stop", "main"]

DONE, BROKEN, USER_ERROR, STOPPED, SUPERSEDED = 0, 1, 2, 75, 76
OTHERS_WORD_S = 2.0
"""How long the first process waits for another to say why it has gone."""


def main(run_dir: Path, stop: Stop | None = None) -> int:
    """Carry out the run in `run_dir`; returns the exit status.

    `stop` asks it to leave with a checkpoint, in place of signals; by default signals do.
    """
    folder = RunFolder(run_dir)
    try:
        here = process_rank(_processes(folder), os.environ)
        if here.starts:
            return start_processes(here, folder.path)
        with _claimed(folder, here) as number, nullcontext(stop) if stop else stop_signals() as asked:
            return _fenced(folder, here, number, asked)
    except HarnessError as error:
        say(str(error))
        return USER_ERROR


def _fenced(folder: RunFolder, here: ProcessRank, number: int, stop: Stop) -> int:
    if here.rank > 0:
        return _attempt(folder, here, number, stop)
    try:
        status = _attempt(folder, here, number, stop)
        folder.attempts.check(number)
    except SupersededError as error:
        say(str(error))
        folder.attempts.end(number, "superseded", str(error))
        return SUPERSEDED
    if status == DONE:
        folder.attempts.end(number, "completed", "", step=_step(folder))
    return status


def _attempt(folder: RunFolder, here: ProcessRank, number: int, stop: Stop) -> int:
    try:
        request = load_request(folder)
        with process_group(here, folder.path, request.experiment.resources) as world:
            # What the first process reads counts: another one's node may still show it older files.
            request, is_done = world.broadcast((request, folder.record_file.exists()))
            attempt = AttemptRunner(folder, request, number, stop, world)
            if is_done:
                attempt.evaluate_again()
                return DONE
            finished = attempt.train()
            if finished and request.phase != "train":
                attempt.evaluate()
        if not finished:
            if here.rank > 0 or folder.is_paused():  # whether it is a pause or a stop is the first one's to say
                return DONE
            return _failed(folder, here, number, "interrupted", "stopped on request", STOPPED)
        return DONE
    except SupersededError:
        raise
    except HarnessError as error:
        return _failed(folder, here, number, "user_error", str(error), USER_ERROR)
    except MemoryError:
        return _failed(folder, here, number, "out_of_memory_host", "the process ran out of memory", BROKEN)
    except Exception as error:
        say_traceback()
        cause: Cause = "out_of_memory_gpu" if type(error).__name__ == "OutOfMemoryError" else "crashed"
        return _failed(folder, here, number, cause, f"{type(error).__name__}: {error}; see {folder.log}", BROKEN)


def _failed(folder: RunFolder, here: ProcessRank, attempt: int, cause: Cause, message: str, status: int) -> int:
    """Leave word of a failure: of several processes' that of the one that failed, which the others only felt."""
    say(message)
    failure = Failure(cause=cause, message=message, attempt=attempt, ended_at=time.time())
    if here.rank > 0:
        if not folder.failure_file.exists():
            folder.fail(failure)
        return status
    folder.attempts.check(attempt)
    if here.size > 1 and cause == "crashed" and _comes(folder.failure_file):
        failure = Failure.model_validate({**dict(folder.failure()), "attempt": attempt})
        status = USER_ERROR if failure.cause == "user_error" else status
    if cause != "interrupted" or not os.environ.get("HARNESS_SCHEDULED"):  # else the node's supervisor knows why
        raised = status == BROKEN
        folder.attempts.end(attempt, failure.cause, failure.message, step=_step(folder), raised=raised)
    folder.fail(failure)
    return status


@contextmanager
def _claimed(folder: RunFolder, here: ProcessRank) -> Iterator[int]:
    """The number of the attempt; the folder is held by the first process for all of them."""
    if here.rank > 0:
        yield 0
        return
    with folder.claimed(takeover=bool(os.environ.get("HARNESS_SCHEDULED"))) as number:
        folder.failure_file.unlink(missing_ok=True)
        yield number


def _processes(folder: RunFolder) -> int:
    try:
        return load_request(folder).processes
    except HarnessError:
        return 1  # the attempt itself says what is wrong, and where that is kept


def _step(folder: RunFolder) -> int:
    return int(folder.read_progress().get("step", 0))


def _comes(file: Path) -> bool:
    until = time.monotonic() + OTHERS_WORD_S
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return file.exists()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
