"""This very process, one run after the other: for debugging, and for a node that is already allocated."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from harness.execute.local.processes import Ended, cores


class InlineWorkers:
    """Carries a run out in `start`, so breakpoints and profilers work."""

    def __init__(self) -> None:
        self.jobs = 1
        self.threads = cores()
        self._ended: list[Ended] = []

    def start(self, folder: Path) -> None:
        """Carry the run out before returning. Ctrl-C stops the run, and then whoever conducts it."""
        from harness import worker

        status = worker.main(folder)
        self._ended.append(Ended(folder.name, status))
        if status == worker.STOPPED:
            signal.raise_signal(signal.SIGINT)  # the run took the signal; it was meant for the command

    def ended(self, timeout_s: float) -> list[Ended]:
        """The run that `start` carried out."""
        ended, self._ended = self._ended, []
        if not ended:
            time.sleep(timeout_s)
        return ended

    def stop(self) -> None:
        """Nothing runs beside this process."""

    def close(self) -> None:
        """Nothing is held."""
