"""The real fork server around a worker that does at once what a file in its run folder says.

`made.json` is the record that it leaves; `do` says how: `finish`, `finish after` (after a second), `wait` (until it is
asked to stop), `die` (the first time), `die always`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from pathlib import Path

import harness
from harness.runs.folder import RunFolder
from harness.runs.record import Failure


def work(run_dir: Path) -> int:
    folder = RunFolder(run_dir)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))  # first: a test stops it once it is claimed
    with folder.claimed():
        attempts = folder.path / "tries"
        with attempts.open("a") as stream:
            stream.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
        print("at work", flush=True)
        action = (folder.path / "do").read_text()
        if action == "die always" or (action == "die" and len(attempts.read_text().splitlines()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + {"wait": 60.0, "finish after": 1.0}.get(action, 0.0)
        while time.monotonic() < until:
            time.sleep(0.01)
            if stopped:
                folder.fail(Failure(cause="interrupted", message="stopped on request", attempt=1, ended_at=1.0))
                return 75
        (folder.path / "made.json").replace(folder.record_file)
    return 0


def put_in_place_of_the_worker() -> None:
    fake = types.ModuleType("harness.worker")
    fake.main = work  # type: ignore[attr-defined]
    sys.modules["harness.worker"] = fake
    harness.worker = fake


if __name__ == "__main__":
    from harness.execute.local import fork_server

    put_in_place_of_the_worker()
    del sys.argv[1:]  # nothing here needs open_clip
    fork_server.main()
