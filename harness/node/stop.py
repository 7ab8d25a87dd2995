"""Requests to stop: SIGTERM of a scheduler, SIGUSR2 of submitit, Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from harness.base.signals import STOPPING, handled
from harness.parallel.process_group import watch_parent

Stop: TypeAlias = threading.Event
"""Set by a signal; the loop looks at it after each step."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A flag that requests to stop set, for the time of the block."""
    stop = Stop()
    with handled(STOPPING, lambda *_: stop.set()):
        watch_parent(stop)
        yield stop
