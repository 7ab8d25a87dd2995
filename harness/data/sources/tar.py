"""Where the members of a tar file lie, so that each can be read alone. The format is the standard library's to know."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import DataError
from harness.base.files import open_plain

HEAD = 4096
"""Bytes of a member that are read at once."""
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstd begin."""


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
        self.skipped: Counter[str] = Counter()
        """Members that are no regular files, and what follows the end, by reason; complete after `members`."""
        try:
            self._file = open_plain(path)
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

    def place(self, member: Member, location: str) -> tuple[str, int]:
        """File of a member, where `location` is this one's, and offset in it."""
        return location, member.offset

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
            self._check_headers(info)
            if info.isreg() and not info.issparse():
                head = self.read(info.offset_data, min(stop, info.offset_data + HEAD))
                yield Member(info.name, info.offset_data, info.size, head)
            elif not info.isdir():
                self.skipped["links and special files in tar files"] += 1
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        # tarfile takes a header that it cannot read for the end.
        mark = self.read(tar.offset, tar.offset + tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE:
            raise self._bad("is truncated: its end mark is missing")
        if mark != bytes(tarfile.BLOCKSIZE):
            raise self._bad(f"is damaged at byte {tar.offset}")
        if self.read(tar.offset, tar.offset + tarfile.RECORDSIZE).strip(b"\0"):
            self.skipped["tar files with data after their end mark"] += 1

    def _check_headers(self, info: tarfile.TarInfo) -> None:
        """Refuse a pax header that is damaged: before 3.11.10, tarfile leaves out what it cannot read of one, such as
        a long name, and the member would belong to another sample."""
        position = info.offset
        while position < info.offset_data - tarfile.BLOCKSIZE:
            header = self.read(position, position + tarfile.BLOCKSIZE)
            try:
                size = int(header[124:136].strip(b" \0") or b"0", 8)
                if header[156:157] in (tarfile.XHDTYPE, tarfile.XGLTYPE):
                    _check_pax(self.read(position + tarfile.BLOCKSIZE, position + tarfile.BLOCKSIZE + size))
            except ValueError:
                raise self._bad(f"is damaged at byte {position}") from None
            position += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))

    def _opened(self) -> tarfile.TarFile:
        self._file.seek(0)
        try:
            return tarfile.TarFile(fileobj=self._file, encoding="utf-8", errors="surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            if self.read(0, 8).startswith(_PACKED):
                fix = "unpack it: samples are read at random"
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


def _check_pax(content: bytes) -> None:
    """Check the records of a pax header, "LENGTH KEY=VALUE" lines.

    Raises:
        ValueError: one is damaged.
    """
    position = 0
    while position < len(content):
        length, space, _ = content[position : position + 20].partition(b" ")
        end = position + int(length)
        record = content[position + len(length) + 1 : end]
        if not space or end > len(content) or not record.endswith(b"\n") or b"=" not in record[1:]:
            raise ValueError("pax record")
        position = end
