"""Captions that stand in files of their own, joined to samples by an id that both name.

The captions are copied once into an Arrow file that is memory-mapped; what is held in memory is 16 bytes a row.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.base.errors import DataError
from harness.base.files import replacing
from harness.config.sources import CaptionFile
from harness.data.hashing import hash64
from harness.data.sources import arrow
from harness.data.sources.raw_samples import RejectedError, captions_in_cell, shard_key, split_captions
from harness.data.sources.rows import rows
from harness.data.sources.tar import Archive
from harness.data.sources.tar_samples import SampleTexts, by_extension, grouped

_ROWS_PER_BATCH = 20_000
_MAX_MISMATCH = 0.1
_SHOWN = 60
_FIX = "correct id, captions or raw of the source in data.pseudo"


class CaptionRow(NamedTuple):
    """One row of captions."""

    id: str
    captions: tuple[str, ...]
    raw: str | None
    """The raw caption as the row repeats it, where it does."""


class Joined:
    """The captions of one source by id, and the account of how well they joined.

    Raises:
        DataError: a file is missing or damaged, lacks a column, or has another number of lines than its rows.
    """

    def __init__(self, name: str, source: CaptionFile, files: Sequence[Path], rows: Path | None, work: Path) -> None:
        self._name, self._source = name, source
        self.unusable: dict[str, int] = {}
        """Rows without a usable caption, by reason."""
        self.notes: list[str] = []
        """What was guessed while reading, a sentence each."""
        self._table = _Table(_entries(source, files, rows, self), work / f"captions-{name}.arrow")
        self._asked = self._found = self._compared = self._different = self._shared = 0
        self._owners: NDArray[np.int32] = np.full(self._table.rows, -1, dtype=np.int32)
        self._shards: dict[str, int] = {}
        self._example: tuple[str, str, str] | None = None
        self._unfound: list[str] = []

    def of_key(self, key: str, shard: str, raw: str) -> tuple[str, ...]:
        """The captions of a sample that is looked up by its key: under `shard_key`, or else under the key alone."""
        row = self._table.find(shard_key(shard, key))
        if row is None and (row := self._table.find(key)) is not None:
            owner = self._shards.setdefault(shard, len(self._shards))
            self._shared += self._owners[row] not in (-1, owner)
            self._owners[row] = owner
        return self._captions(key, row, raw)

    def captions(self, wanted: str | None, raw: str) -> tuple[str, ...]:
        """The captions of the sample whose id is `wanted`; none where there is no row for it."""
        return self._captions(wanted, None if wanted is None else self._table.find(wanted), raw)

    def _captions(self, wanted: str | None, row: int | None, raw: str) -> tuple[str, ...]:
        self._asked += 1
        if row is None:
            if len(self._unfound) < 3:
                self._unfound.append(str(wanted))
            return ()
        self._found += 1
        entry = self._table.entry(row)
        if entry.raw is not None:
            self._compare(entry.id, entry.raw, raw)
        return entry.captions

    def account(self) -> dict[str, Any]:
        """How the files joined: rows, repeated ids, rows that no sample asked for, samples with captions."""
        return {
            "rows": self._table.rows,
            "repeated_ids": self._table.repeated,
            "unused_rows": self._table.unused,
            "unusable_rows": dict(sorted(self.unusable.items())),
            "samples": self._asked,
            "covered": self._found,
            "raw_captions_compared": self._compared,
            "raw_captions_different": self._different,
        }

    def check(self) -> None:
        """Refuse what joined badly.

        Raises:
            DataError: too few samples found captions, or the raw captions beside them are others.
        """
        where = f"data.pseudo.{self._name}"
        if self._shared:
            what = f"{self._shared:,} samples have a key that another shard has too, so a key does not identify a row"
            raise DataError(what, where=where, fix="join by another value (a URL), or name rows SHARD/KEY")
        if self._asked and self._found < self._source.min_coverage * self._asked:
            there = ", ".join(repr(text[:_SHOWN]) for text in self._table.first_ids(3))
            here = ", ".join(repr(text[:_SHOWN]) for text in self._unfound)
            what = (
                f"only {self._found:,} of {self._asked:,} samples have a row in {self._source.path} "
                f"(samples look for {here}; the rows are of {there})"
            )
            fix = "correct join and id, or lower min_coverage if this few are intended"
            raise DataError(what, where=where, fix=fix)
        if self._different > _MAX_MISMATCH * self._compared and self._example is not None:
            key, theirs, ours = (text[:_SHOWN] for text in self._example)
            what = (
                f"{self._different:,} of {self._compared:,} rows of {self._source.path} repeat another raw "
                f"caption than the sample has ({key}: {theirs!r} is not {ours!r}), so they belong to other data"
            )
            raise DataError(what, where=where, fix="join by another id (a URL), or take the captions of this download")

    def _compare(self, key: str, theirs: str, ours: str) -> None:
        self._compared += 1
        if theirs.split() != ours.split():
            self._different += 1
            self._example = self._example or (key, theirs, ours)


class _Table:
    """Entries by id: an Arrow file, and sorted hashes of the ids."""

    def __init__(self, entries: Iterator[CaptionRow], file: Path) -> None:
        hashes = array("Q")
        with replacing(file) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            batch: list[CaptionRow] = []
            for entry in entries:
                hashes.append(hash64(entry.id.encode()))
                batch.append(entry)
                if len(batch) == _ROWS_PER_BATCH:
                    writer.write_batch(_arrow(batch))
                    batch = []
            writer.write_batch(_arrow(batch))
        with pa.memory_map(str(file)) as mapped:
            reader = pa.ipc.open_file(mapped)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(one.num_rows for one in self._batches)]).tolist()
        found = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, dtype=np.uint64)
        self._order: NDArray[np.int64] = np.argsort(found, kind="stable")
        self._hashes = found[self._order]
        self._used = np.zeros(len(found), dtype=np.bool_)
        self.rows = len(found)
        self.repeated = int((self._hashes[1:] == self._hashes[:-1]).sum())

    @property
    def unused(self) -> int:
        """Rows that were never found, those that repeat an id among them."""
        return int((~self._used).sum())

    def find(self, wanted: str) -> int | None:
        """The number of the first row with this id."""
        sought = hash64(wanted.encode())
        place = int(np.searchsorted(self._hashes, np.uint64(sought)))
        while place < self.rows and int(self._hashes[place]) == sought:
            row = int(self._order[place])
            if self._cell(row, "id") == wanted:
                return row
            place += 1
        return None

    def entry(self, row: int) -> CaptionRow:
        """A row, which counts as used."""
        self._used[row] = True
        return CaptionRow(str(self._cell(row, "id")), tuple(self._cell(row, "captions")), self._cell(row, "raw"))

    def first_ids(self, count: int) -> list[str]:
        """Ids of the first rows."""
        return [str(self._cell(row, "id")) for row in range(min(count, self.rows))]

    def _cell(self, row: int, column: str) -> Any:
        number = bisect_right(self._starts, row) - 1
        return self._batches[number].column(column)[row - self._starts[number]].as_py()


_SCHEMA = pa.schema(
    [("id", pa.large_string()), ("captions", pa.large_list(pa.large_string())), ("raw", pa.large_string())]
)


def _arrow(batch: list[CaptionRow]) -> Any:
    raw = pa.array([entry.raw for entry in batch], pa.large_string())
    columns = [arrow.strings([entry.id for entry in batch]), arrow.string_lists([entry.captions for entry in batch])]
    return pa.RecordBatch.from_arrays([*columns, raw], schema=_SCHEMA)


def _entries(source: CaptionFile, files: Sequence[Path], table: Path | None, joined: Joined) -> Iterator[CaptionRow]:
    if files and all(file.suffix.lower() == ".txt" for file in files):
        yield from _aligned(source, files, table, joined)
        return
    for file in files:
        if file.suffix.lower() == ".tar":
            yield from _of_tar(source, file, joined.unusable)
        else:
            yield from _of_table(source, file, joined)


def _of_table(source: CaptionFile, file: Path, joined: Joined) -> Iterator[CaptionRow]:
    columns = [source.id, *source.captions, *([source.raw] if source.raw else [])]
    for row in rows(file, columns, _FIX, notes=joined.notes):
        cells = [row[column] for column in source.captions]
        yield from _entry(source, row[source.id], cells, row[source.raw] if source.raw else None, joined.unusable)


def _of_tar(source: CaptionFile, file: Path, unusable: dict[str, int]) -> Iterator[CaptionRow]:
    with Archive(file) as archive:
        for key, group in grouped(archive.members(), archive.skipped):
            texts = SampleTexts(by_extension(key, group, archive.skipped), archive)
            try:
                cells = [list(texts.at(place)) for place in source.captions]
                raw = next(iter(texts.at(source.raw)), None) if source.raw else None
            except RejectedError as error:
                _count(unusable, str(error))
                continue
            yield from _entry(source, key, cells, raw, unusable)
    for reason, count in archive.skipped.items():
        unusable[reason] = unusable.get(reason, 0) + count


def _aligned(source: CaptionFile, files: Sequence[Path], table: Path | None, joined: Joined) -> Iterator[CaptionRow]:
    """Line n of each text file belongs to row n of the table."""
    if table is None:
        fix = "name in `rows` the table that its lines are aligned with"
        raise DataError("is text without ids", where=source.path, fix=fix)
    columns = [source.id, *([source.raw] if source.raw else [])]
    with ExitStack() as stack:
        texts = [_Lines(file, stack) for file in files]
        for number, row in enumerate(rows(table, columns, _FIX, notes=joined.notes), 1):
            lines = [text.next(number, table) for text in texts]
            yield from _entry(source, row[source.id], lines, row[source.raw] if source.raw else None, joined.unusable)
        for text in texts:
            text.expect_end(number, table)


class _Lines:
    def __init__(self, file: Path, stack: ExitStack) -> None:
        self._file = file
        try:
            self._stream: TextIO = stack.enter_context(file.open(encoding="utf-8", newline="\n"))
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=str(file), fix="correct its path") from error

    def next(self, number: int, table: Path) -> str:
        try:
            line = self._stream.readline()
        except UnicodeDecodeError:
            raise DataError(f"line {number} is not UTF-8", where=str(self._file), fix="convert the file") from None
        if not line:
            raise self._misaligned(f"ends after {number - 1:,} lines, and {table} has more rows")
        return line.rstrip("\r\n")

    def expect_end(self, rows: int, table: Path) -> None:
        if self._stream.readline():
            raise self._misaligned(f"has more lines than the {rows:,} rows of {table}")

    def _misaligned(self, what: str) -> DataError:
        return DataError(what, where=str(self._file), fix="use the table that the lines were written for")


def _entry(source: CaptionFile, id_: Any, cells: list[Any], raw: Any, unusable: dict[str, int]) -> Iterator[CaptionRow]:
    try:
        captions = tuple(text for cell in cells for text in captions_in_cell(cell))
        repeated = None if raw is None else next(iter(captions_in_cell(raw)), None)
        if id_ is None or id_ == "":
            raise RejectedError("no id")
        str(id_).encode()
    except UnicodeEncodeError:
        _count(unusable, "id is not Unicode")
    except RejectedError as error:
        _count(unusable, str(error))
    else:
        yield CaptionRow(str(id_), split_captions(captions, source.split), repeated)


def _count(reasons: dict[str, int], reason: str) -> None:
    reasons[reason] = reasons.get(reason, 0) + 1
