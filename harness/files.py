"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import StoreError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` to write to; when the block ends well it takes the place of `path`.

    Raises:
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
