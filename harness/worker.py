"""The node side: `python -m harness.worker RUN_DIR` carries one run out, whatever started it and wherever it runs.

Inline, local process, batch job, requeued job and debugging are this same command. It needs nothing but the file
system: it reads spec.json and request.json, and leaves metrics, checkpoints, weights and a record in the folder.
Exit status: 0 done or paused where it was asked to, 2 a mistake of the user, 75 stopped on request (run it again to go
on), 76 a newer attempt has taken over, 1 anything else. With HARNESS_SCHEDULED set a scheduler has given the run to
this process: an attempt that is still alive elsewhere is superseded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.attempt import Attempt, Stop, load_request
from harness.errors import HarnessError, SupersededError
from harness.record import Cause, Failure
from harness.store import RunFolder

DONE, BROKEN, USER_ERROR, STOPPED, SUPERSEDED = 0, 1, 2, 75, 76


def main(run_dir: Path) -> int:
    """Carry out the run in `run_dir`; returns the exit status."""
    folder = RunFolder(run_dir)
    try:
        with folder.claimed(takeover=bool(os.environ.get("HARNESS_SCHEDULED"))) as number, _stop_signals() as stop:
            return _fenced(folder, number, stop)
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        return USER_ERROR


def _fenced(folder: RunFolder, number: int, stop: Stop) -> int:
    try:
        status = _attempt(folder, number, stop)
        folder.attempts.check(number)
    except SupersededError as error:
        print(f"harness: {error}", file=sys.stderr)
        folder.attempts.end(number, "superseded", str(error))
        return SUPERSEDED
    if status == DONE:
        folder.attempts.end(number, "completed", "", step=_step(folder))
    return status


def _attempt(folder: RunFolder, number: int, stop: Stop) -> int:
    folder.failure_file.unlink(missing_ok=True)
    try:
        attempt = Attempt(folder, load_request(folder), number, stop)
        if folder.record_file.exists():
            attempt.evaluate_again()
            return DONE
        if not attempt.train():
            if folder.is_paused():
                return DONE
            return _failed(folder, number, "interrupted", "stopped on request", STOPPED)
        if attempt.request.phase != "train":
            attempt.evaluate()
        return DONE
    except SupersededError:
        raise
    except HarnessError as error:
        return _failed(folder, number, "user_error", str(error), USER_ERROR)
    except MemoryError:
        return _failed(folder, number, "out_of_memory_host", "the process ran out of memory", BROKEN)
    except Exception as error:
        traceback.print_exc()
        cause: Cause = "out_of_memory_gpu" if type(error).__name__ == "OutOfMemoryError" else "crashed"
        return _failed(folder, number, cause, f"{type(error).__name__}: {error}; see {folder.log}", BROKEN)


def _failed(folder: RunFolder, attempt: int, cause: Cause, message: str, status: int) -> int:
    folder.attempts.check(attempt)
    print(f"harness: {message}", file=sys.stderr)
    if cause != "interrupted" or not os.environ.get("HARNESS_SCHEDULED"):  # else the node's supervisor knows why
        folder.attempts.end(attempt, cause, message, step=_step(folder), raised=status == BROKEN)
    folder.fail(Failure(cause=cause, message=message, attempt=attempt, ended_at=time.time()))
    return status


def _step(folder: RunFolder) -> int:
    return int(folder.read_progress().get("step", 0))


@contextmanager
def _stop_signals() -> Iterator[Stop]:
    """Requests to stop (SIGTERM of a scheduler, SIGUSR2 of submitit, Ctrl-C) set a flag that the loop looks at."""
    stop = Stop()
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
