"""An iterator that runs ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")
_Passed = tuple[_T | None, BaseException | None]


def prefetched(items: Iterator[_T], ahead: int) -> Iterator[_T]:
    """The items of `items`, up to `ahead` of them made before they are asked for.

    The first is made by the caller's own thread: loader processes are forked then, before there is a second thread.
    """
    # A `for` with a `break` takes one item and is silent on an empty iterator. The thread starts only when the second
    # item is asked for, and from then on the bounded queue is all that couples the two: `maxsize` is the look-ahead,
    # and an item or an error travels in one tuple, so that an error arrives after the good items made before it.
    for first in items:
        yield first
        break
    passed: queue.Queue[_Passed[_T]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()
    threading.Thread(target=_make, args=(items, passed, stopped), daemon=True).start()
    try:
        while True:
            item, error = passed.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()


def _make(items: Iterator[_T], passed: queue.Queue[_Passed[_T]], stopped: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            _put(passed, (item, None), stopped)
            if stopped.is_set():
                return
    except BaseException as raised:
        error = raised
    _put(passed, (None, error), stopped)


def _put(passed: queue.Queue[_Passed[_T]], item: _Passed[_T], stopped: threading.Event) -> None:
    # A plain put would wait for ever when the consumer has gone: its generator is closed, and no get() makes room.
    # So the wait is short and looks at `stopped` between tries; the thread is a daemon for the same reason.
    while not stopped.is_set():
        with suppress(queue.Full):
            passed.put(item, timeout=0.2)
            return
