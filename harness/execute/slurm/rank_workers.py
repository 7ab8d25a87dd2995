"""One of several processes of a run: each task that srun starts carries its own rank's worker out."""

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
    """Starts `python -m harness.worker RUN_DIR` with the rank that srun's variables state, one run at a time."""

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
        """The worker, if it has ended, waiting at most `timeout_s` for that."""
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
        """Ask the worker to write a checkpoint and leave."""
        if self._current is not None:
            send(self._current[1].pid, signal.SIGTERM)

    def close(self) -> None:
        """Nothing is held."""
