"""Execute runs in this process, one after the other: for debugging, and on a node that is already allocated."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextvars import copy_context
from pathlib import Path

from harness.base.log import written_to
from harness.base.machine import without_ranks
from harness.execute.local.processes import Ended


class InlineWorkers:
    """Executes a run inside `start`, in the calling thread, so breakpoints and profilers work."""

    def __init__(self, threads: int) -> None:
        self.jobs = 1
        self.threads = threads
        self._ended: list[Ended] = []

    def start(self, folder: Path) -> None:
        """Execute the run before returning. Ctrl-C stops the run, and then the caller."""
        from harness import worker

        status = worker.main(folder, environment=without_ranks(os.environ))
        self._ended.append(Ended(folder.name, status))
        if status == worker.STOPPED:
            signal.raise_signal(signal.SIGINT)  # the run consumed the signal, so pass it on to the command

    def ended(self, timeout_s: float) -> list[Ended]:
        """The run that `start` executed."""
        ended, self._ended = self._ended, []
        if not ended:
            time.sleep(timeout_s)
        return ended

    def stop(self) -> None:
        """Do nothing: no other process is running."""

    def close(self) -> None:
        """Do nothing: there are no resources to release."""


class SilentInlineWorkers(InlineWorkers):
    """Inline workers without output or signal handlers: a thread executes the run, and its output goes to its log."""

    def __init__(self, threads: int, stop: threading.Event | None = None) -> None:
        """`stop`: once set, the run writes a checkpoint and exits."""
        super().__init__(threads)
        self._stop_event = stop

    def start(self, folder: Path) -> None:
        """Execute the run before returning. A KeyboardInterrupt stops the run cleanly and is raised again."""
        from harness import worker

        stop, alone = worker.Stop(self._stop_event), without_ranks(os.environ)

        def work() -> None:
            with written_to(folder / "log.txt"):
                self._ended.append(Ended(folder.name, worker.main(folder, stop, alone)))

        thread = threading.Thread(target=copy_context().run, args=(work,))
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            stop.set()
            thread.join()
            raise
