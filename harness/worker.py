"""The node side: `python -m harness.worker RUN_DIR` carries one run out, whatever started it and wherever it runs.

Inline, local process, batch job, requeued job and debugging are this same command. It needs nothing but the file
system: it reads spec.json and request.json, and leaves metrics, checkpoints, weights and a record in the folder.
Exit status: 0 done, 2 a mistake of the user, 75 stopped on request (run it again to go on), 1 anything else.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.attempt import Attempt, Stop, load_request
from harness.errors import HarnessError
from harness.record import Cause, Failure
from harness.store import RunFolder

DONE, BROKEN, USER_ERROR, STOPPED = 0, 1, 2, 75


def main(run_dir: Path) -> int:
    """Carry out the run in `run_dir`; returns the exit status."""
    folder = RunFolder(run_dir)
    try:
        with folder.claimed(), _stop_signals() as stop:
            return _attempt(folder, stop)
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        return USER_ERROR


def _attempt(folder: RunFolder, stop: Stop) -> int:
    folder.failure_file.unlink(missing_ok=True)
    number = int(folder.read_progress().get("attempt", 0)) + 1
    try:
        attempt = Attempt(folder, load_request(folder), number, stop)
        if folder.record_file.exists():
            attempt.evaluate_again()
            return DONE
        if not attempt.train():
            return _failed(folder, number, "interrupted", "stopped on request", STOPPED)
        attempt.evaluate()
        return DONE
    except HarnessError as error:
        return _failed(folder, number, "user_error", str(error), USER_ERROR)
    except MemoryError:
        return _failed(folder, number, "out_of_memory", "the process ran out of memory", BROKEN)
    except Exception as error:
        traceback.print_exc()
        cause: Cause = "out_of_memory" if type(error).__name__ == "OutOfMemoryError" else "crashed"
        return _failed(folder, number, cause, f"{type(error).__name__}: {error}; see {folder.log}", BROKEN)


def _failed(folder: RunFolder, attempt: int, cause: Cause, message: str, status: int) -> int:
    print(f"harness: {message}", file=sys.stderr)
    folder.fail(Failure(cause=cause, message=message, attempt=attempt, ended_at=time.time()))
    return status


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
