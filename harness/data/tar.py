"""Where the members of a tar file lie, so that each can be read alone.

The standard library's tarfile takes three times as long a member, which matters for tens of millions of them.
Formats read: POSIX.1-1988 (ustar), pax (path and size), GNU (long names), with the headers' checksums verified.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.errors import DataError

_BLOCK = 512
_HEAD = 4096
_ZEROS = bytes(_BLOCK)
_CHECKSUM = slice(148, 156)
_FILE_TYPES = b"0\0007"
_EMPTY_TYPES = b"123456"
_MAX_EXTENSION = 1 << 20
_FIX = "fetch the shard again or leave it out of the pattern"


class Member(NamedTuple):
    """One file in a tar file."""

    name: str
    offset: int
    size: int
    head: bytes
    """Its first bytes, at most 4096; all of it when it is shorter."""


def members(path: Path) -> Iterator[Member]:
    """The regular files in the tar file `path`, in order.

    Raises:
        DataError: the file is missing, unreadable, compressed, truncated or no tar file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror})", where=str(path), fix=_FIX) from error
    try:
        yield from _walk(descriptor, path)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), fix=_FIX) from error
    finally:
        os.close(descriptor)


def _walk(descriptor: int, path: Path) -> Iterator[Member]:
    end = os.fstat(descriptor).st_size
    position = 0
    long_name: str | None = None
    long_size: int | None = None
    while position < end:
        block = os.pread(descriptor, _BLOCK + _HEAD, position)
        header = block[:_BLOCK]
        if header == _ZEROS:
            return
        size = _checked_size(header, path, position)
        kind = header[156]
        start = position + _BLOCK
        if kind in b"xgLK":
            extension = os.pread(descriptor, min(size, _MAX_EXTENSION), start)
            if kind == ord("L"):
                long_name = _text(extension)
            elif kind == ord("x"):
                long_name, long_size = _pax(extension, long_name, long_size)
        else:
            size = 0 if kind in _EMPTY_TYPES else size if long_size is None else long_size
            if start + size > end:
                raise DataError(f"is truncated inside {long_name or _name(header)!r}", where=str(path), fix=_FIX)
            if kind in _FILE_TYPES:
                yield Member(long_name or _name(header), start, size, block[_BLOCK : _BLOCK + size])
            long_name = long_size = None
        position = start + -(-size // _BLOCK) * _BLOCK
    raise DataError("is truncated: its end mark is missing", where=str(path), fix=_FIX)


def _checked_size(header: bytes, path: Path, position: int) -> int:
    """The size that a header states, once its checksum is found right."""
    try:
        if len(header) < _BLOCK:
            raise ValueError("short header")
        stated = int(header[_CHECKSUM].strip(b" \0") or b"0", 8)
        if sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != stated:
            raise ValueError("checksum")
        field = header[124:136]
        if field[0] & 0x80:
            return int.from_bytes(field[1:], "big")
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        what = "is compressed" if header[:2] == b"\x1f\x8b" else "is no tar file" if position == 0 else "is damaged"
        fix = "unpack it (gunzip): samples are read at random" if what == "is compressed" else _FIX
        raise DataError(f"{what} (at byte {position})", where=str(path), fix=fix) from None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(extension: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Path and size of the next member, where a pax header ("LENGTH key=value" lines) states them."""
    position = 0
    while position < len(extension):
        length = int(extension[position : extension.find(b" ", position)] or b"0")
        if length <= 0:
            break
        key, _, value = extension[position : position + length - 1].partition(b" ")[2].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            size = int(value)
        position += length
    return name, size
