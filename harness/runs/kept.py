"""Derived data in a JSON file that carries a digest, so that damage is noticed before it is believed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json
from harness.base.sums import make_room
from harness.runs.identity import digest

_LENGTH = 64


def keep(file: Path, data: dict[str, Any]) -> None:
    """Write `data`. A store that cannot be written to keeps nothing: what it says is derived each time."""
    try:
        make_room(file)
        write_json(file, data | {"digest": digest([file.name, data], _LENGTH)})
    except (StoreError, OSError):
        return


def kept(file: Path) -> dict[str, Any] | None:
    """What `keep` wrote; None if there is no such file.

    Raises:
        ValueError: the file is damaged, or cannot be read.
    """
    if not os.path.lexists(file):
        return None
    try:
        data: dict[str, Any] = read_json(file)
        if data.pop("digest") == digest([file.name, data], _LENGTH):
            return data
    except (AttributeError, StoreError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged") from error
    raise ValueError(f"{file} is damaged")
