"""The digests of the files of a folder of derived data, so that damage is noticed before it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.base.errors import StoreError
from harness.base.files import file_sha256, read_json, write_json

SUMS = "sha256.json"
"""The digest of each file, by its path in the folder."""


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Keep the digests of the files `names` of `folder`; raises StoreError if it cannot be written."""
    make_room(folder / SUMS)
    write_json(folder / SUMS, {name: file_sha256(folder / name) for name in names})


def is_damaged(folder: Path) -> bool:
    """Whether a file of `folder` is not as it was written. Reads all of them.

    A folder of an earlier version has no digests and counts as sound.
    """
    if not os.path.lexists(folder / SUMS):
        return False
    try:
        return any(file_sha256(folder / name) != stated for name, stated in read_json(folder / SUMS).items())
    except (AttributeError, OSError, StoreError, TypeError, ValueError):  # a missing file, or a damaged SUMS
        return True


def files_below(folder: Path) -> list[str]:
    """The path in `folder` of everything below it that is no folder, except SUMS."""
    below = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(name for path in below if (name := path.relative_to(folder).as_posix()) != SUMS)


def make_room(file: Path) -> None:
    """Delete the folder that is where a file of derived data has to be written. Any other thing is replaced.

    Raises:
        OSError: it cannot be deleted.
    """
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
