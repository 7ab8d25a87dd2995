"""Atomic writes: a reader sees the old file or the new one, never a partial one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from harness.base.boundary import as_sentence, files_of, is_full
from harness.base.errors import DiskFullError, HarnessError, StoreError

MOST_TOML, MOST_JSON = 1 << 24, 1 << 28
"""Bytes of a file that is read as a whole."""
DEEPEST = 64
"""Levels of tables and lists in a spec."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""Errors of `os.link` on a file system without hard links."""
_SMALL = 1 << 20
_fences: list[tuple[Path, Callable[[], None]]] = []


@contextmanager
def fenced(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before any file below `folder` is put in place, in every thread, for the duration of the block.

    `check` raises if this process may no longer write there: its fencing token is not the newest.
    """
    fence = (folder, check)
    _fences.append(fence)
    try:
        yield
    finally:
        _fences.remove(fence)


def check_fences(path: Path) -> None:
    """Raise if this process may no longer write to `path`."""
    for folder, check in tuple(_fences):
        if path.is_relative_to(folder):
            check()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path` to write to. If the block succeeds, the file replaces `path`.

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


def unwritable(path: Path, error: OSError) -> HarnessError:
    """The error for a `path` that cannot be written, or for another file that `error` names."""
    if not _is_about(path, error) and (told := as_sentence(error, kind=StoreError)) is not None:
        return told
    kind = DiskFullError if is_full(error) else StoreError
    what = f"cannot be written ({error.strerror or error})"
    return kind(what, where=str(path), fix="free space or correct the permissions")


def _is_about(path: Path, error: OSError) -> bool:
    """Whether `error` names no file, `path` or one of its parents, or what is written to become `path`."""
    names = files_of(error)
    aside = str(path.with_name(f".{path.name}."))
    return not names or any(path.is_relative_to(one) or one.startswith((f"{path}/", aside)) for one in names)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as aside:
        aside.write_bytes(content)


def create_text(path: Path, text: str) -> bool:
    """Write `text` to `path` atomically unless `path` exists; returns whether it was written.

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


def write_json(path: Path, data: Any, *, in_order: bool = False) -> None:
    """Write `data` as indented JSON to `path` atomically, by sorted keys or `in_order`. NaN and infinity raise
    ValueError."""
    write_text(path, json.dumps(data, indent=1, sort_keys=not in_order, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read the JSON file `path`.

    Raises:
        StoreError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(read_text(path, MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read ({why_not_json(error)})"
        raise StoreError(what, where=str(path), fix="restore it, or move it away") from error


def why_not_json(error: OSError | ValueError | RecursionError) -> str:
    """Why a file could not be read as JSON."""
    match error:
        case OSError():
            return error.strerror or str(error)
        case RecursionError():
            return "it is nested too deeply"
        case _:
            return f"it is not valid JSON: {error}"


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """The text of the file `path`, if it is a plain file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is no plain file, or is too large.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"has {size:,} bytes; at most {most:,} are read", str(path))
        return stream.read().decode()


def read_bytes(path: Path) -> bytes:
    """The contents of the file `path`; raises OSError if it cannot be read, or is no plain file."""
    with open_plain(path) as stream:
        return stream.read()


def open_plain(path: Path | str) -> BufferedReader:
    """Open the file `path` for reading. A pipe would wait for ever, and a device such as /dev/zero never ends.

    Raises:
        OSError: it cannot be opened, or is no plain file.
    """
    stream = open(path, "rb", opener=_at_once)  # noqa: SIM115
    try:
        _plain_status(stream.fileno(), path)
    except OSError:
        stream.close()
        raise
    return stream


def read_ends(path: str, first: int, last: int) -> tuple[int, bytes, bytes]:
    """Size of the plain file `path`, its `first` bytes, and the `last` ones if it is longer than the first.

    Raises:
        OSError: as `open_plain`.
        ValueError: no file can be called so.
    """
    number = _at_once(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = _plain_status(number, path).st_size
        tail = os.pread(number, last, max(size - last, 0)) if size > first else b""
        return size, os.pread(number, first, 0), tail
    finally:
        os.close(number)


def _plain_status(number: int, path: Path | str) -> os.stat_result:
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return status


def require_plain(path: Path) -> None:
    """Raise OSError if the file `path` cannot be opened, or is no plain file. For libraries that open it themselves."""
    open_plain(path).close()


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def at_home(path: str) -> Path:
    """`path` with the home folder in place of `~`; unchanged if there is no such user."""
    return Path(os.path.expanduser(path))


def read_toml(path: Path, error: type[HarnessError], fix: str) -> dict[str, Any]:
    """Read a TOML file that a user wrote.

    Args:
        error: what to raise.
        fix: what to do if there is no such file.
    """
    import tomllib

    try:
        table = tomllib.loads(read_text(path, MOST_TOML))
    except FileNotFoundError:
        raise error("there is no such file", where=str(path), fix=fix) from None
    except OSError as reason:
        raise error(f"cannot be read ({reason.strerror})", where=str(path), fix="name a TOML file") from None
    except ValueError as reason:
        raise error(f"is not valid TOML ({reason})", where=str(path), fix="correct that line") from None
    except RecursionError:
        table = None
    if table is None or is_deeper(table, DEEPEST):
        what = f"is nested more than {DEEPEST} levels deep"
        raise error(what, where=str(path), fix="write it with fewer levels")
    return table


def is_deeper(data: Any, levels: int) -> bool:
    """Whether tables and lists are nested more than `levels` deep."""
    here = [data]
    for _ in range(levels + 1):
        here = [
            below
            for one in here
            if isinstance(one, dict | list)
            for below in (one.values() if isinstance(one, dict) else one)
        ]
        if not here:
            return False
    return True


def file_sha256(path: Path) -> str:
    """The SHA-256 of the contents of the file `path`, in hex; raises OSError if it cannot be read."""
    with open_plain(path) as stream:
        # `hashlib.file_digest` takes twice as long for small files, of which a report compares thousands
        if os.fstat(stream.fileno()).st_size <= _SMALL:
            return hashlib.sha256(stream.read()).hexdigest()
        return hashlib.file_digest(stream, "sha256").hexdigest()
