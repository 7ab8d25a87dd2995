"""Workers for runs with several processes: each task that srun starts runs the worker of its own rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.execute.local.processes import Ended, send

POLL_S = 0.1


class RankWorkers:
    """Starts `python -m harness.worker RUN_DIR` with the rank from srun's variables, one run at a time."""

    def __init__(self, threads: int) -> None:
        self._environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL")}}
        self._current: tuple[str, subprocess.Popen[bytes]] | None = None

    def start(self, folder: Path) -> None:
        """Start this rank's worker on a run."""
        command = [sys.executable, "-m", "harness.worker", str(folder)]
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        self._current = (folder.name, process)

    def ended(self, timeout_s: float) -> list[Ended]:
        """The worker, if it has ended; waits at most `timeout_s` for its end."""
        if self._current is None:
            time.sleep(timeout_s)
            return []
        run_id, process = self._current
        until = time.monotonic() + timeout_s
        while (status := process.poll()) is None and time.monotonic() < until:
            time.sleep(POLL_S)
        if status is None:
            return []
        self._current = None
        return [Ended(run_id, status)]

    def stop(self) -> None:
        """Ask the worker to write a checkpoint and exit."""
        if self._current is not None:
            send(self._current[1].pid, signal.SIGTERM)

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
