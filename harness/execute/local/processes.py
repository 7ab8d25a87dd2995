"""Execute N runs at a time as processes of this machine, which share its cores and GPUs."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import DispatchError
from harness.base.machine import cores, gpu_count, without_ranks
from harness.execute.local.fork_server import WITHOUT_PACKAGES
from harness.execute.local.optional_packages import may_need_packages
from harness.runs.settings import Settings

FORK_SERVER = (sys.executable, "-m", "harness.execute.local.fork_server")
IGNORING_SIGNALS = ("/bin/sh", "-c", 'trap "" TERM USR2; exec "$@"', "sh")
"""Command prefix: the command that follows ignores these signals from the moment it starts."""


@dataclass(frozen=True)
class Ended:
    """A worker process ended."""

    run_id: str
    status: int
    """Exit status, or minus the number of the signal that ended it."""


def thread_count(settings: Settings, jobs: int) -> int:
    """Threads of each run: harness.toml's `threads` (or --threads), else OMP_NUM_THREADS, else cores / jobs."""
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    users = int(stated) if stated.isdecimal() else 0
    return settings.threads or users or max(cores() // jobs, 1)


def job_count(settings: Settings, asked: int | None, processes: int = 1) -> int:
    """Runs at a time: the requested number, else harness.toml's `jobs`, else one per core (at most 8), or as many as
    there are GPUs for, one for each of a run's `processes`.
    """
    gpus = gpu_count()
    return asked or settings.jobs or (max(gpus // processes, 1) if gpus else min(cores(), 8))


class LocalWorkers:
    """Worker processes that one fork server starts (see `fork_server`)."""

    def __init__(self, jobs: int, threads: int, *, in_job: bool = False) -> None:
        """Make workers that begin with the first run.

        Args:
            threads: of each worker.
            in_job: a scheduler signals all processes of the job, the fork server included, and kills the rest.
        """
        self.jobs, self._in_job = jobs, in_job
        self.threads = threads
        self._events: queue.Queue[Ended | DispatchError] = queue.Queue()
        self._fork_server: _ForkServer | None = None

    def start(self, folder: Path) -> None:
        """Start a worker on a run folder that is ready for it."""
        if self._fork_server is None or not self._fork_server.take(folder):
            self.close()
            less = () if may_need_packages(folder) else (WITHOUT_PACKAGES,)
            self._fork_server = _ForkServer(self.threads, self._events, self._in_job, less)
            self._fork_server.take(folder)

    def ended(self, timeout_s: float) -> list[Ended]:
        """Workers that ended since the last call, waiting at most `timeout_s` for the first.

        Raises:
            DispatchError: no process can be started.
        """
        found: list[Ended] = []
        try:
            event = self._events.get(timeout=timeout_s)
            while True:
                if isinstance(event, DispatchError):
                    raise event
                found.append(event)
                event = self._events.get_nowait()
        except queue.Empty:
            return found

    def stop(self) -> None:
        """Ask every live worker to write a checkpoint and exit."""
        if self._fork_server is not None:
            self._fork_server.stop()

    def close(self) -> None:
        """Let the fork server exit once its children have ended."""
        if self._fork_server is not None:
            self._fork_server.close()


class _ForkServer:
    """One fork server process and the thread that reads its messages."""

    def __init__(
        self, threads: int, events: queue.Queue[Ended | DispatchError], in_job: bool, options: Sequence[str]
    ) -> None:
        self._events, self._in_job = events, in_job
        self._ready = False
        self._given: set[str] = set()
        self._pids: dict[str, int] = {}
        self._stopping = False
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            (*(IGNORING_SIGNALS if in_job else ()), *FORK_SERVER, *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**without_ranks(os.environ), **limits},
            start_new_session=True,  # Ctrl-C reaches only this process, which asks the workers to stop cleanly
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def take(self, folder: Path) -> bool:
        """Have a worker started on a run folder; returns False if this fork server is dead."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            return False
        self._given.add(folder.name)
        try:
            self._process.stdin.write(f"{folder.resolve()}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._given.discard(folder.name)
            return False
        return True

    def stop(self) -> None:
        """Ask the workers to stop, including those that are about to start."""
        self._stopping = True
        for pid in list(self._pids.values()):
            send(pid, signal.SIGTERM)
        if self._in_job and not self._ready:  # its imports take seconds more, which a job that must end may not have
            self._process.kill()

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                event, run_id, number = line.split()
                self._ready = True
                match event:
                    case "ready":
                        pass  # its imports are done
                    case "started":
                        self._pids[run_id] = int(number)
                        if self._stopping:
                            send(int(number), signal.SIGTERM)
                    case "ended":
                        self._pids.pop(run_id, None)
                        self._given.discard(run_id)
                        self._events.put(Ended(run_id, int(number)))
                    case _:
                        self._events.put(DispatchError(f"the fork server sent an unknown event: {event!r}"))
        status = self._process.wait()
        if not self._ready and not self._stopping:
            what = f"the worker processes cannot be started (exit status {status}, see above)"
            self._events.put(DispatchError(what, fix="try `--on inline`, or `harness doctor`"))
        for run_id in sorted(self._given):  # the fork server was killed; its workers continue and keep their locks
            self._events.put(Ended(run_id, status))


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process; do nothing if it has already ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
