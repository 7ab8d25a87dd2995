"""Samples in CSV, TSV or Parquet tables: images by path or embedded, with captions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from harness.base.files import open_plain, read_ends
from harness.config.data import TableData
from harness.config.sources import CaptionFile, SplitColumns
from harness.data.sources.options import ReadOptions
from harness.data.sources.raw_samples import (
    Candidate,
    Note,
    RawSample,
    Rejected,
    RejectedError,
    captions_in_cell,
    is_list,
    one_caption,
    split_captions,
)
from harness.data.sources.rows import Row, TextForm, rows

_HEAD, _TAIL = 4096, 64
"""Bytes at both ends of an image file that are read at once."""
_FIX = "correct data.image, data.raw or data.pseudo"


def raw_samples(data: TableData, files: list[Path], options: ReadOptions) -> Iterator[Candidate]:
    """The samples of the rows in order; for each that is none, the reason.

    With `options.unpack`, embedded images are written there, one file for each table: a row of a Parquet file cannot be
    read alone, a place in a plain file can. Without it they are left in the table: what is yielded can be looked at,
    but its location is the table's.

    Raises:
        DataError: a table is missing, unreadable, or lacks a column.
    """
    lists = 0
    merged: dict[str, list[Row]] = {}
    seen: Counter[str] = Counter()
    notes: list[str] = []
    numbers = {file: number for number, file in enumerate(options.names)}
    for file in files:
        with _Unpacked(options.unpack, numbers[file], file) as unpacked:
            reader = _Reader(data, options, unpacked)
            form = TextForm(data.separator, data.quoting)
            name, raw, repeats = options.names[file], data.raw, data.repeats
            for row_number, row in enumerate(rows(file, _columns(data), _FIX, form, notes)):
                numbered = f"{name}-{row_number:08d}"
                lists += isinstance(cell := row[raw], str) and is_list(cell)
                match repeats:
                    case "first":
                        yield reader.candidate([row], numbered)
                    case "samples":
                        yield reader.candidate([row], numbered, seen)
                    case "captions":
                        merged.setdefault(reader.name(row, numbered), []).append(row)
            for numbered, found in merged.items():
                yield reader.candidate(found, numbered)
            merged.clear()
    yield from map(Note, notes)
    if lists:
        yield Note("raw captions are lists of captions; the first of each is the raw caption", lists)


def _columns(data: TableData) -> list[str]:
    columns = [data.image, data.raw, *([data.key] if data.key else [])]
    for source in data.pseudo.values():
        match source:
            case CaptionFile(join=join):
                columns += [] if join == "key" else [join]
            case SplitColumns():
                columns += source.columns
            case _:
                columns += source
    return list(dict.fromkeys(columns))


class _Unpacked:
    """A plain file that takes the embedded images of one table; made only when there are any."""

    def __init__(self, folder: Path | None, number: int, table: Path) -> None:
        self._folder, self._table = folder, table
        self._name = f"images-{number:05d}"
        self._stream: BinaryIO | None = None

    def __enter__(self) -> _Unpacked:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def add(self, content: bytes) -> tuple[str, int]:
        """Name of the file and offset of `content` in it."""
        if self._folder is None:
            return self._table.name, 0
        if self._stream is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stream = (self._folder / self._name).open("wb")
        offset = self._stream.tell()
        self._stream.write(content)
        return self._name, offset


class _Reader:
    """What the rows of one table are read with."""

    def __init__(self, data: TableData, options: ReadOptions, unpacked: _Unpacked) -> None:
        self._data, self._folder, self._joins = data, str(options.root), options.joins
        self._quarantine, self._unpacked = options.quarantine, unpacked
        self._raw, self._image = (data.raw,), data.image

    def name(self, row: Row, numbered: str) -> str:
        """What rows of one image share."""
        try:
            content, path = _image_cell(row[self._data.image])
            return self._key(row, "" if content is not None else path, numbered)
        except RejectedError:
            return numbered

    def candidate(self, rows: list[Row], numbered: str, seen: Counter[str] | None = None) -> RawSample | Rejected:
        """The sample of some rows of one image. `numbered` names it where nothing else does.

        Args:
            seen: how often each key was met; a key that is met again gets a number.
        """
        location, key, row = "", None, rows[0]
        try:
            content, path = _image_cell(row[self._image])
            key = self._key(row, "" if content is not None else path, numbered)
            if seen is not None:
                seen[key] += 1
                key = key if seen[key] == 1 else f"{key}#{seen[key]}"
            location = path or numbered
            if self._quarantine.reason(key, "") is not None:
                return Rejected("quarantined", location, key)
            raw = one_caption(_cells(rows, self._raw))
            pseudo = {name: self._source(name, rows, key, raw) for name in self._data.pseudo}
            if content is None:
                return self._by_path(key, path, raw, pseudo)
            place, offset = self._unpacked.add(content)
        except RejectedError as error:
            return Rejected(str(error), location, key)

        def read(start: int, stop: int) -> bytes:
            return content[start:stop]

        return RawSample(key, place, offset, len(content), content[:_HEAD], read, raw, pseudo)

    def _key(self, row: Row, path: str, numbered: str) -> str:
        if self._data.key is None:
            return path or numbered
        key = row[self._data.key]
        if key is None or key == "":
            raise RejectedError("no key")
        return str(key)

    def _source(self, name: str, rows: list[Row], key: str, raw: str) -> tuple[str, ...]:
        match source := self._data.pseudo[name]:
            case CaptionFile(join=join):
                wanted = key if join == "key" else rows[0][join]
                return self._joins[name].captions(None if wanted is None else str(wanted), raw)
            case SplitColumns():
                return split_captions(_cells(rows, source.columns), source.split)
            case _:
                return _cells(rows, source)

    def _by_path(self, key: str, path: str, raw: str, pseudo: dict[str, tuple[str, ...]]) -> RawSample:
        file = os.path.join(self._folder, path)
        try:
            size, head, tail = read_ends(file, _HEAD, _TAIL)
        except FileNotFoundError:
            raise RejectedError("image missing") from None
        except (OSError, ValueError):
            raise RejectedError("image unreadable") from None

        def read(start: int, stop: int) -> bytes:
            if tail and (start, stop) == (size - _TAIL, size):
                return tail
            with open_plain(file) as again:
                again.seek(start)
                return again.read(stop - start)

        return RawSample(key, path, 0, size, head, read, raw, pseudo)


def _image_cell(cell: Any) -> tuple[bytes | None, str]:
    """An embedded file and its name, or nothing and a path."""
    match cell:
        case str() if cell.strip():
            return None, cell
        case bytes():
            return cell, ""
        case {"bytes": bytes() as content}:
            return content, str(cell.get("path") or "")
        case {"path": str() as path} if path.strip():
            return None, path
        case dict():
            raise RejectedError("no image")
        case _:
            raise RejectedError("no image path")


def _cells(rows: list[Row], columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(rows) == len(columns) == 1:
        return captions_in_cell(rows[0][columns[0]])
    return tuple(text for row in rows for column in columns for text in captions_in_cell(row[column]))
