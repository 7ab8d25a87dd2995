"""Locks of processes: an open file that is locked, and that says who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import StoreError
from harness.base.sums import make_room


class Holder(NamedTuple):
    """The live process that holds a lock."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether the process is on this machine."""
        return self.host == socket.gethostname()


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`; yields whether it is held (always, if `wait`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_room(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        with suppress(OSError):  # on a full disk the lock works even without this content
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(
            f"cannot be read ({error.strerror})", where=str(path), fix="correct its permissions"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two checks do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(path: Path) -> Holder | None:
    """The live process that holds the lock `path`; None if there is none, or it has not written its id yet."""
    if not is_held(path):
        return None
    match path.read_text(encoding="utf-8", errors="replace").split():
        case [pid, host] if pid.isdecimal():
            return Holder(int(pid), host)
        case _:
            return None
