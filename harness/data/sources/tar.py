"""Where the members of a tar file lie, so that each can be read alone. The format is the standard library's to know."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import DataError

_HEAD = 4096
_GZIP = b"\x1f\x8b"


class Member(NamedTuple):
    """One file in a tar file."""

    name: str
    offset: int
    size: int
    head: bytes
    """Its first bytes, at most 4096; all of it when it is shorter."""


class Archive:
    """A tar file, open for reading. Every failure of the file is a DataError that names it.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise self._bad(f"cannot be opened ({error.strerror})") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), fewer at the end of the file.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return os.pread(self._file.fileno(), stop - start, start)
        except OSError as error:
            raise self._bad(f"cannot be read ({error.strerror})") from error

    def members(self) -> Iterator[Member]:
        """The regular files in it, in order.

        Raises:
            DataError: the file is compressed, damaged, truncated or no tar file.
        """
        end = os.fstat(self._file.fileno()).st_size
        tar = self._opened()
        while (info := self._next(tar)) is not None:
            stop = info.offset_data + info.size
            if info.size < 0:
                raise self._bad(f"is damaged at byte {info.offset}")
            if stop > end:
                raise self._bad(f"is truncated inside {info.name!r}")
            if info.isreg() and not info.issparse():
                head = self.read(info.offset_data, min(stop, info.offset_data + _HEAD))
                yield Member(info.name, info.offset_data, info.size, head)
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        # tarfile takes a header that it cannot read for the end.
        mark = self.read(tar.offset, tar.offset + tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE:
            raise self._bad("is truncated: its end mark is missing")
        if mark != bytes(tarfile.BLOCKSIZE):
            raise self._bad(f"is damaged at byte {tar.offset}")

    def _opened(self) -> tarfile.TarFile:
        self._file.seek(0)
        try:
            return tarfile.TarFile(fileobj=self._file, encoding="utf-8", errors="surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            if self.read(0, len(_GZIP)) == _GZIP:
                fix = "unpack it (gunzip): samples are read at random"
                raise DataError("is compressed", where=str(self._path), fix=fix) from None
            if not self.read(0, 1):
                raise self._bad("is truncated: it is empty") from error
            raise self._bad("is no tar file") from error

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        try:
            return tar.next()
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise self._bad(f"is damaged at byte {tar.offset}") from error
        except OSError as error:
            raise self._bad(f"cannot be read ({error.strerror})") from error

    def _bad(self, what: str) -> DataError:
        return DataError(what, where=str(self._path), fix="fetch it again or leave it out of data.shards")
