"""Handle signals for the duration of a block."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""Requests to stop: from a scheduler (preemption, cancellation, time limit), and Ctrl-C."""


@contextmanager
def handled(numbers: Collection[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` for these signals, and restore the previous handlers afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
