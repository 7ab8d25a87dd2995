"""An array on disk, filled part by part by one or several processes, which may be killed at any moment.

NAME.npy.partial    the array at its full size; parts that are not marked hold anything
NAME.parts/N        written once part N is on disk: the SHA-256 of its bytes
NAME.npy            the array once every part is there and was found to be what its mark says
NAME.json           its shape and digests, and the array that they are of

An array is read after its bytes were compared with the digests. Parts that differ are computed again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.errors import ModelError, StoreError
from harness.base.files import read_json, require_plain, unwritable, write_json, write_text
from harness.base.locks import exclusive
from harness.base.log import say
from harness.base.sums import make_room

Halves = npt.NDArray[np.float16]

PART = 16384
"""Rows per part: the most that a kill can lose."""


class ResumableArray:
    """An unfinished float16 array [rows, width] at `path`. All processes must use the same `part`."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self.path, self.rows, self.width = path, rows, width
        self._partial = path.with_name(f"{path.name}.partial")
        self._marks = path.with_name(f"{path.stem}.parts")
        self._digests = path.with_suffix(".json")

    @property
    def is_done(self) -> bool:
        """Whether the array is complete."""
        return self.path.exists()

    def missing(self, shard: tuple[int, int] = (0, 1)) -> list[range]:
        """Rows of the parts that shard I of N still has to compute. The remainder is distributed evenly."""
        if self.is_done:
            return []
        self._forget_if_damaged()
        there = {file.name for file in self._marks.glob("*")}
        number, total = shard
        return [self._rows_of(part) for part in range(number, self._parts, total) if str(part) not in there]

    def write(self, rows: range, values: Halves) -> None:
        """Write the values [len(rows), width] of a part, then mark it as done, in this order.

        Raises:
            ModelError: a value is not finite.
            StoreError: the disk is full.
        """
        if not np.isfinite(values).all():
            what = f"features of rows {rows.start:,} to {rows.stop:,} are not finite"
            raise ModelError(what, where=str(self.path), fix="check the teacher's weights")
        array = self._opened()
        try:
            array[rows.start : rows.stop] = values
            array.flush()
        except OSError as error:
            raise unwritable(self._partial, error) from error
        write_text(self._marks / str(rows.start // PART), _digest(values))

    def finish(self) -> bool:
        """Move the array to its final path if every part is done. Returns whether it is there now.

        A part that is not what its mark says (a disk's fault) is forgotten and has to be made again.
        """
        with exclusive(self.path.with_name("growing.lock"), wait=True):
            if self.is_done:
                shutil.rmtree(self._marks, ignore_errors=True)
                return True
            if self.missing():
                return False
            digests = [(self._marks / str(part)).read_text(errors="replace") for part in range(self._parts)]
            bad = [part for part, digest in enumerate(digests) if self._digest_of(part) != digest]
            for part in bad:
                (self._marks / str(part)).unlink()
            if bad:
                say(f"{self._partial} is damaged: {len(bad)} of its parts are computed again")
                return False
            stated = {"of": _name(self.path), "rows": self.rows, "width": self.width, "part": PART, "sha256": digests}
            make_room(self._digests)
            write_json(self._digests, stated)
            self._opened(create=False).flush()
            self._partial.rename(self.path)
            shutil.rmtree(self._marks, ignore_errors=True)
        return True

    @property
    def _parts(self) -> int:
        return -(-self.rows // PART)

    def _rows_of(self, part: int) -> range:
        return range(part * PART, min((part + 1) * PART, self.rows))

    def _digest_of(self, part: int) -> str:
        rows = self._rows_of(part)
        return _digest(self._opened(create=False)[rows.start : rows.stop])

    def _opened(self, *, create: bool = True) -> Any:
        if create and not self._partial.exists():
            with exclusive(self.path.with_name("growing.lock"), wait=True):
                self._create()
        file = self._partial if self._partial.exists() else self.path  # another process may have just finished it
        array = np.load(file, mmap_mode="r+")
        if array.shape != (self.rows, self.width):
            fix = "delete it: another version created it"
            raise StoreError(f"has the shape {array.shape}, not {self.rows, self.width}", where=str(file), fix=fix)
        return array

    def _forget_if_damaged(self) -> None:
        """Start over if the unfinished array cannot be opened."""
        try:
            if os.path.lexists(self._partial):
                require_plain(self._partial)
                np.load(self._partial, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            say(f"{self._partial} is damaged: its features are computed again")
            shutil.rmtree(self._marks, ignore_errors=True)
            make_room(self._partial)
            self._partial.unlink(missing_ok=True)

    def _create(self) -> None:
        if self._partial.exists() or self.is_done:
            return
        aside = self._partial.with_name(f".{self._partial.name}")
        try:
            shape = (self.rows, self.width)
            np.lib.format.open_memmap(aside, mode="w+", dtype=np.float16, shape=shape).flush()  # type: ignore[no-untyped-call]
            aside.rename(self._partial)
        except OSError as error:
            raise unwritable(self._partial, error) from error


def open_array(path: Path, rows: int) -> Halves:
    """The finished array at `path`, memory-mapped.

    Raises:
        StoreError: it is damaged or has another number of rows.
    """
    try:
        require_plain(path)
        array: Halves = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(
            f"cannot be read ({error})", where=str(path), fix="delete it; it is then computed again"
        ) from error
    if array.ndim != 2 or len(array) != rows or array.dtype != np.float16:
        what = f"holds {array.dtype} {array.shape} instead of {rows:,} rows of float16"
        raise StoreError(what, where=str(path), fix="delete it; it is then computed again")
    return array


def damage(path: Path, rows: int) -> list[int] | None:
    """Parts of the finished array at `path` whose bytes are not those written; None: it is of no use at all."""
    try:
        stated, array = read_json(path.with_suffix(".json")), open_array(path, rows)
        digests, shape = list(stated["sha256"]), (stated["rows"], stated["width"])
        known = stated["part"] == PART and stated.get("of", _name(path)) == _name(path) and array.shape == shape
        if not known or len(digests) != -(-rows // PART):
            return None
        return [part for part, one in enumerate(digests) if _digest(array[part * PART : (part + 1) * PART]) != one]
    except (StoreError, KeyError, TypeError):
        return None


def reopen_if_damaged(path: Path, rows: int) -> str | None:
    """Make the finished array at `path` unfinished if it is damaged; returns a sentence about the damage, or None.

    `ResumableArray.missing` then names the parts that have to be computed again.
    """
    if not os.path.lexists(path) or damage(path, rows) == []:
        return None
    with exclusive(path.with_name("growing.lock"), wait=True):
        if not os.path.lexists(path) or (parts := damage(path, rows)) == []:
            return None  # another process has noticed it too
        if parts is None:
            make_room(path)
            path.unlink(missing_ok=True)
            return f"{path} is damaged and is computed again"
        digests = enumerate(read_json(path.with_suffix(".json"))["sha256"])
        for part, one in digests:
            if part not in parts:
                write_text(path.with_name(f"{path.stem}.parts") / str(part), one)
        path.rename(path.with_name(f"{path.name}.partial"))
    return f"{path} is damaged: {len(parts)} of its parts are computed again"


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _digest(values: Halves) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
