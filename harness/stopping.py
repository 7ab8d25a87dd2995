"""Requests to stop: SIGTERM of a scheduler, SIGUSR2 of submitit, Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from harness.distributed import watch_parent

Stop: TypeAlias = threading.Event
"""Set by a signal; the loop looks at it after each step."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A flag that requests to stop set, for the time of the block."""
    stop = Stop()
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    watch_parent(stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
