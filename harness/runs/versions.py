"""Versions of files on disk. An older harness refuses a newer one's files with a clear error, and never guesses.

    store.json          version of the store: its folders, and every file in it that has no version of its own
    spec.json           `version`
    record.json         `version`
    request.json        none: fields at their default are left out, so older code reads it unless a new feature is used
    data/index-*        the version is part of the folder's name; another version builds another index
    evaluation/         a cache under content keys; another version writes other keys

Stores made before there was a store.json have version 1. Raise STORE_VERSION when an older harness would misread what
this one writes, and migrate older stores in `begin_store`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.base.errors import StoreError
from harness.base.files import create_text, read_json

STORE_VERSION = 1
STORE_FILE = "store.json"
UPDATE = "use the harness that wrote it, or update this one"


def check_store(root: Path) -> None:
    """Make sure that this harness knows the version of the store at `root`. Reads one small file.

    Raises:
        StoreError: a newer harness has written to it, or store.json cannot be read.
    """
    file = root / STORE_FILE
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", where=str(file), fix="correct its permissions") from None
    table = read_json(file)
    version = table.get("version") if isinstance(table, dict) else None
    if type(version) is not int or version < 1:
        fix = f'restore it; a store that only this harness has written to has {{"version": {STORE_VERSION}}}'
        raise StoreError("is damaged: it has no version", where=str(file), fix=fix)
    check_version(table, STORE_VERSION, file)


def begin_store(root: Path) -> None:
    """Create a store's folder and write its version, unless they exist. Call this before writing to the store.

    If the store cannot be written, this does nothing, and the write that follows reports the reason.

    Raises:
        StoreError: a newer harness has written to it.
    """
    if not (root / STORE_FILE).exists():
        with suppress(StoreError):
            create_text(root / STORE_FILE, f"{json.dumps({'version': STORE_VERSION})}\n")
    check_store(root)


def check_version(table: Mapping[str, Any], newest: int, file: Path) -> None:
    """Raise StoreError if `table`, the contents of `file`, states a version above `newest`."""
    version = table.get("version", 1)
    if type(version) is int and version > newest:
        raise newer(file, f"version {version}; this harness reads up to version {newest}")


def newer(file: Path, how: str) -> StoreError:
    """The error for a file that a newer harness wrote; `how` is the evidence for that."""
    return StoreError(f"was written by a newer harness ({how})", where=str(file), fix=UPDATE)


def unreadable(error: ValidationError, file: Path, fix: str) -> StoreError:
    """The error for a file of the store that does not fit its model: unknown fields mean a newer harness, else damage.

    Args:
        fix: what to do about damage.
    """
    found = error.errors()
    for one in found:
        if one["type"] == "extra_forbidden":
            return newer(file, f"unknown field {'.'.join(map(str, one['loc']))}")
    first = found[0]
    place = ".".join(map(str, first["loc"]))
    return StoreError(f"is damaged ({f'{place}: ' if place else ''}{first['msg']})", where=str(file), fix=fix)
