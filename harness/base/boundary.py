"""Where exceptions become sentences: at the door of the command, of the API, and of each run folder that is read.

Errors of the operating system, of depth, size, encoding and memory come from what a user or another program wrote.
Anything else is a defect of the harness, and is reported as one.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from harness.base.errors import DataError, DiskFullError, HarnessError, StoreError

P = ParamSpec("P")
T = TypeVar("T")
_FIXES = {
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "correct the path",
    errno.EISDIR: "name a file",
    errno.EACCES: "correct its permissions",
    errno.EPERM: "correct its permissions",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.ELOOP: "correct the symbolic link",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}
_VALUES = ("null byte", "null character", "integer string conversion")
"""Parts of messages of ValueErrors that a text in a file can cause anywhere."""


def files_of(error: OSError) -> list[str]:
    """The files that `error` names."""
    return [os.fsdecode(one) for one in (error.filename, error.filename2) if isinstance(one, str | bytes)]


def is_full(error: OSError) -> bool:
    """Whether `error` says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def as_sentence(
    error: BaseException, where: str | None = None, kind: type[HarnessError] = HarnessError
) -> HarnessError | None:
    """The error for the user, if `error` comes from what a user or another program wrote; None for a defect.

    Args:
        where: the file that was read, if the error does not say.
    """
    match error:
        case HarnessError():
            return error
        case BrokenPipeError():
            return None
        case OSError():
            place = " and ".join(files_of(error)) or where
            reason = error.strerror or str(error) or type(error).__name__
            kind = DiskFullError if is_full(error) else kind
            return kind(f"cannot be used ({reason})", where=place, fix=_FIXES.get(error.errno or 0, "check it"))
        case RecursionError():
            return kind("is nested too deeply", where=where, fix="write it with fewer levels")
        case MemoryError():
            return kind("needs more memory than is available", where=where, fix="make it smaller")
        case UnicodeError():
            what = f"holds text that is not valid Unicode ({error})"
            return kind(what, where=where, fix="correct that character")
        case ValueError() if any(part in str(error) for part in _VALUES):
            return kind(f"holds a value that cannot be used ({error})", where=where, fix="correct it")
        case _:
            return None


@contextmanager
def reading(where: str | os.PathLike[str], kind: type[HarnessError] = StoreError) -> Iterator[None]:
    """Turn errors while something is read into `kind`, so that one bad file does not end a command for the others."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if (found := as_sentence(error, os.fspath(where), kind)) is None:
            raise
        raise found from error


def door(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function of the API raise HarnessErrors for what users and other programs wrote. A defect passes."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except HarnessError:
            raise
        except Exception as error:
            if (found := as_sentence(error, kind=DataError)) is None:
                raise
            raise found from error

    return call


def defect(error: BaseException) -> str:
    """The sentence for a defect of the harness, which names the file that holds the traceback."""
    text = "".join(traceback.format_exception(error))
    what = f"this is a defect of the harness, not yours ({type(error).__name__})"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="harness-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as stream:
            stream.write(f"{' '.join(sys.argv)}\n\n{text}")
    except OSError:
        return f"{what}; please report it with this traceback:\n{text}"
    return f"{what}; please report it with the traceback in {stream.name}"
