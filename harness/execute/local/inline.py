"""This very process, one run after the other: for debugging, and for a node that is already allocated."""

from __future__ import annotations

import signal
import threading
import time
from contextvars import copy_context
from pathlib import Path

from harness.base.log import written_to
from harness.base.machine import cores
from harness.execute.local.processes import Ended


class InlineWorkers:
    """Carries a run out in `start`, in the calling thread, so breakpoints and profilers work."""

    def __init__(self) -> None:
        self.jobs = 1
        self.threads = cores()
        self._ended: list[Ended] = []

    def start(self, folder: Path) -> None:
        """Carry the run out before returning. Ctrl-C stops the run, and then the caller."""
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


class SilentInlineWorkers(InlineWorkers):
    """The same without output and signal handlers: a thread carries the run out, and writes to the run's log."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        """`stop`: once set, the run writes a checkpoint and leaves."""
        super().__init__()
        self._asked = stop

    def start(self, folder: Path) -> None:
        """Carry the run out before returning. A KeyboardInterrupt stops it cleanly and is raised again."""
        from harness import worker

        stop = worker.Stop(self._asked)

        def work() -> None:
            with written_to(folder / "log.txt"):
                self._ended.append(Ended(folder.name, worker.main(folder, stop)))

        thread = threading.Thread(target=copy_context().run, args=(work,))
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            stop.set()
            thread.join()
            raise
