"""Requests to stop: SIGTERM from a scheduler, SIGUSR2 from submitit, Ctrl-C, or the caller's event."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.base.signals import STOPPING, handled
from harness.parallel.process_group import watch_parent


class Stop(threading.Event):
    """Asks the training loop to write a checkpoint and exit. The loop checks it after each step."""

    def __init__(self, asked: threading.Event | None = None) -> None:
        """`asked`: an event of the caller with the same meaning, which is only read."""
        super().__init__()
        self._caller_event = asked

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return super().is_set() or (self._caller_event is not None and self._caller_event.is_set())


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A flag that stop signals set, for the duration of the block."""
    stop = Stop()
    with handled(STOPPING, lambda *_: stop.set()):
        watch_parent(stop)
        yield stop
