"""Processes of this machine: N runs at a time, threads and GPUs shared out among them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DispatchError
from harness.settings import Settings


@dataclass(frozen=True)
class Ended:
    """A worker process ended."""

    run_id: str
    status: int
    """Exit status, or minus the number of the signal that ended it."""


def job_count(settings: Settings, asked: int | None) -> int:
    """How many runs at a time: what was asked for, harness.toml's `jobs`, or one for each core (at most 8)."""
    return asked or settings.jobs or min(cores(), 8)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalWorkers:
    """Worker processes, forked warm from one nursery (see `nursery`). Each gets cores / jobs threads."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.threads = max(cores() // jobs, 1)
        self._pids: dict[str, int] = {}
        self._ended: queue.Queue[Ended] = queue.Queue()
        self._nursery: subprocess.Popen[str] | None = None

    def start(self, folder: Path) -> None:
        """Start a worker on a run folder that is ready for it.

        Raises:
            DispatchError: no process could be started.
        """
        nursery = self._nursery or self._open()
        try:
            assert nursery.stdin is not None
            nursery.stdin.write(f"{folder.resolve()}\n")
            nursery.stdin.flush()
        except BrokenPipeError as error:
            raise DispatchError("the worker processes cannot be started", fix="try `--on inline`") from error

    def ended(self, timeout_s: float) -> list[Ended]:
        """Workers that ended since the last call, waiting at most `timeout_s` for the first."""
        found = []
        try:
            found.append(self._ended.get(timeout=timeout_s))
            while True:
                found.append(self._ended.get_nowait())
        except queue.Empty:
            return found

    def stop(self) -> None:
        """Ask every living worker to write a checkpoint and leave."""
        for pid in list(self._pids.values()):
            with_suppressed_kill(pid, signal.SIGTERM)

    def close(self) -> None:
        """Let the nursery end; it waits for its children."""
        if self._nursery is not None and self._nursery.stdin is not None:
            self._nursery.stdin.close()

    def _open(self) -> subprocess.Popen[str]:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "harness.dispatch.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on, as a request to leave cleanly
        )
        threading.Thread(target=self._listen, args=(self._nursery,), daemon=True).start()
        return self._nursery

    def _listen(self, nursery: subprocess.Popen[str]) -> None:
        assert nursery.stdout is not None
        for line in nursery.stdout:
            event, run_id, number = line.split()
            if event == "started":
                self._pids[run_id] = int(number)
            else:
                self._pids.pop(run_id, None)
                self._ended.put(Ended(run_id, int(number)))
        for run_id in list(self._pids):
            self._ended.put(Ended(run_id, -int(signal.SIGKILL)))


def with_suppressed_kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
