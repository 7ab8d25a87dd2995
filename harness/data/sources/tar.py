"""Where the members of a tar file lie, so that each can be read alone.

The standard library's tarfile takes three times as long a member, which matters for tens of millions of them.
Formats read: POSIX.1-1988 (ustar), pax (path and size), GNU (long names), with the headers' checksums verified.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import DataError

_BLOCK = 512
_HEAD = 4096
_ZEROS = bytes(_BLOCK)
_CHECKSUM = slice(148, 156)
_FILE_TYPES = (b"0", b"\0", b"7")
_EMPTY_TYPES = (b"1", b"2", b"3", b"4", b"5", b"6")
_EXTENSION_TYPES = (b"x", b"g", b"L", b"K")
_MAX_EXTENSION = 1 << 20


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
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self._bad(f"cannot be opened ({error.strerror})") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), fewer at the end of the file.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return os.pread(self._descriptor, stop - start, start)
        except OSError as error:
            raise self._bad(f"cannot be read ({error.strerror})") from error

    def members(self) -> Iterator[Member]:
        """The regular files in it, in order.

        Raises:
            DataError: the file is compressed, damaged, truncated or no tar file.
        """
        end = os.fstat(self._descriptor).st_size
        position = 0
        stated = _Stated()
        while position < end:
            block = self.read(position, position + _BLOCK + _HEAD)
            header = block[:_BLOCK]
            if header == _ZEROS:
                return
            kind, size = header[156:157], self._size(header, position)
            start = position + _BLOCK
            if kind in _EXTENSION_TYPES:
                stated = self._stated(kind, self.read(start, start + min(size, _MAX_EXTENSION)), stated, position)
            else:
                name = stated.name or _name(header)
                size = 0 if kind in _EMPTY_TYPES else size if stated.size is None else stated.size
                stated = _Stated()
                if start + size > end:
                    raise self._bad(f"is truncated inside {name!r}")
                if kind in _FILE_TYPES:
                    yield Member(name, start, size, block[_BLOCK : _BLOCK + size])
            position = start + -(-size // _BLOCK) * _BLOCK
        raise self._bad("is truncated: its end mark is missing")

    def _size(self, header: bytes, position: int) -> int:
        """The size that a header states, once its checksum is found right."""
        try:
            if len(header) < _BLOCK:
                raise ValueError("short header")
            stated = int(header[_CHECKSUM].strip(b" \0") or b"0", 8)
            if sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != stated:
                raise ValueError("checksum")
            field = header[124:136]
            size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b" \0") or b"0", 8)
            if size < 0:
                raise ValueError("negative size")  # the next header would be this one, for ever
            return size
        except ValueError:
            if header[:2] == b"\x1f\x8b":
                fix = "unpack it (gunzip): samples are read at random"
                raise DataError("is compressed", where=str(self._path), fix=fix) from None
            raise self._bad("is no tar file" if position == 0 else f"is damaged at byte {position}") from None

    def _stated(self, kind: bytes, content: bytes, before: _Stated, position: int) -> _Stated:
        match kind:
            case b"L":
                return before._replace(name=_text(content))
            case b"x":
                try:
                    return _pax(content, before)
                except ValueError:
                    raise self._bad(f"is damaged at byte {position}") from None
            case _:
                return before

    def _bad(self, what: str) -> DataError:
        return DataError(what, where=str(self._path), fix="fetch it again or leave it out of data.shards")


class _Stated(NamedTuple):
    """What headers before a member's own say of it."""

    name: str | None = None
    size: int | None = None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _natural(value: bytes) -> int:
    if (number := int(value)) < 0:
        raise ValueError("negative size")
    return number


def _pax(content: bytes, before: _Stated) -> _Stated:
    """Path and size of the next member, where a pax header ("LENGTH key=value" lines) states them."""
    position = 0
    while position < len(content):
        length = int(content[position:].split(b" ", 1)[0])
        if length <= 0:
            raise ValueError("length")
        key, _, value = content[position : position + length - 1].partition(b" ")[2].partition(b"=")
        if key == b"path":
            before = before._replace(name=value.decode("utf-8", "surrogateescape"))
        elif key == b"size":
            before = before._replace(size=_natural(value))
        position += length
    return before
