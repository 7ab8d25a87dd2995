"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What `os.link` says on a file system that has no hard links."""
_fences: list[tuple[Path, Callable[[], None]]] = []


@contextmanager
def fenced(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """While the block lasts, `check` is called before any file below `folder` is put in place, in every thread.

    It raises where this process may not write there any more.
    """
    fence = (folder, check)
    _fences.append(fence)
    try:
        yield
    finally:
        _fences.remove(fence)


def check_fences(path: Path) -> None:
    """Raise if this process may not write to `path` any more."""
    for folder, check in tuple(_fences):
        if path.is_relative_to(folder):
            check()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` to write to; when the block ends well it takes the place of `path`.

    Raises:
        SupersededError: `path` is in the folder of a run that a newer attempt has taken over.
        StoreError: the folder cannot be written (full disk, no permission).
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        aside = Path(name)
        yield aside
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(aside, 0o644)
        check_fences(path)
        aside.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> StoreError:
    """What to tell a person when `path` cannot be written."""
    what = f"cannot be written ({error.strerror or error})"
    return StoreError(what, where=str(path), fix="free space or mend the permissions")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as one atomic step."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def create_text(path: Path, text: str) -> bool:
    """Write `text` to `path` as one atomic step unless `path` exists; whether it was written.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as aside:
            aside.write(text.encode())
            aside.flush()
            os.fsync(aside.fileno())
            os.chmod(aside.name, 0o644)
            os.link(aside.name, path)  # unlike a rename, this fails if another process was first
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise unwritable(path, error) from error
        write_text(path, text)
    return True


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON to `path` as one atomic step. NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`.

    Raises:
        StoreError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot be read ({error})", where=str(path), fix="restore it, or move it away") from error
