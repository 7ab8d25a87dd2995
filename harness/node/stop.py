"""Requests to stop: SIGTERM of a scheduler, SIGUSR2 of submitit, Ctrl-C, or an event of the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.base.signals import STOPPING, handled
from harness.parallel.process_group import watch_parent


class Stop(threading.Event):
    """Asks the training loop, which looks at it after each step, to write a checkpoint and leave."""

    def __init__(self, asked: threading.Event | None = None) -> None:
        """`asked`: an event of the caller that asks for the same; it is only read."""
        super().__init__()
        self._asked = asked

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return super().is_set() or (self._asked is not None and self._asked.is_set())


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A flag that requests to stop set, for the time of the block."""
    stop = Stop()
    with handled(STOPPING, lambda *_: stop.set()):
        watch_parent(stop)
        yield stop
