"""Folders of img2dataset's `files` layout, read as the members of a tar file are."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import DataError
from harness.data.sources.tar import HEAD, Member


class LooseFiles:
    """The files of one folder, in order of name. Offsets are those in all of them one after another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[int] = []
        self._names: list[str] = []
        self.skipped: Counter[str] = Counter()
        """As `Archive.skipped`."""

    def __enter__(self) -> LooseFiles:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def members(self) -> Iterator[Member]:
        """The regular files.

        Raises:
            DataError: the folder cannot be read.
        """
        start = 0
        try:
            for name in sorted(os.listdir(self._path)):
                file = self._path / name
                if not file.is_file():
                    continue
                size = file.stat().st_size
                self._starts.append(start)
                self._names.append(name)
                yield Member(name, start, size, self.read(start, start + min(size, HEAD)))
                start += size + 1  # so that an empty file has an offset of its own
        except OSError as error:
            raise self._bad(error) from error

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the file that begins at or before `start`.

        Raises:
            DataError: it cannot be read.
        """
        number = bisect_right(self._starts, start) - 1
        try:
            with (self._path / self._names[number]).open("rb") as stream:
                stream.seek(start - self._starts[number])
                return stream.read(stop - start)
        except OSError as error:
            raise self._bad(error) from error

    def place(self, member: Member, location: str) -> tuple[str, int]:
        """File of a member, where `location` is the folder's, and offset in it."""
        return os.path.normpath(os.path.join(location, member.name)), 0

    def _bad(self, error: OSError) -> DataError:
        return DataError(f"cannot be read ({error.strerror})", where=str(self._path), fix="correct data.shards")
