"""Arrays on disk whose file ends in a digest of itself, so that damage is noticed before it is believed. No torch."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.files import read_bytes, replacing
from harness.base.sums import make_room

DIGEST_BYTES = 32


def read_arrays(file: Path) -> Any:
    """What `write_array` or `write_arrays` has written: an array, or arrays by name.

    Raises:
        OSError, ValueError, EOFError, StoreError: there is no such file, or it is damaged.
    """
    found = read_bytes(file)
    content, stated = found[:-DIGEST_BYTES], found[-DIGEST_BYTES:]
    if _digest(file, content) != stated:
        raise ValueError(f"{file} is damaged")
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    os.utime(file)  # asked for now: the last to go
    return loaded


def write_array(file: Path, array: NDArray[Any]) -> None:
    """Write one array in one atomic step."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    _write(file, content.getvalue())


def write_arrays(file: Path, arrays: dict[str, Any]) -> None:
    """Write several arrays, compressed, in one atomic step."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    _write(file, content.getvalue())


def _write(file: Path, content: bytes) -> None:
    make_room(file)
    with replacing(file) as aside:
        aside.write_bytes(content + _digest(file, content))


def _digest(file: Path, content: bytes) -> bytes:
    """Of what a file holds and of its name, so that no other file can take its place."""
    return hashlib.sha256(file.name.encode() + content).digest()
