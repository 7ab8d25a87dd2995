"""Output of a node: to the terminal or its log, or to a file if an API call must print nothing."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

_FILE: ContextVar[TextIO | None] = ContextVar("_FILE", default=None)


def say(text: str) -> None:
    """Print a line of the harness to stderr, or to the file of `written_to`."""
    print(f"harness: {text}", file=_FILE.get() or sys.stderr, flush=True)


def say_traceback() -> None:
    """Print the traceback of the exception that is being handled."""
    traceback.print_exc(file=_FILE.get() or sys.stderr)


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Append this thread's output to the file instead, for the duration of the block."""
    with path.open("a", encoding="utf-8") as stream:
        token = _FILE.set(stream)
        try:
            yield
        finally:
            _FILE.reset(token)
