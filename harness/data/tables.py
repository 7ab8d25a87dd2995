"""Samples in a CSV, TSV or Parquet table of image paths and captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from harness.data.candidates import Candidate, Rejected, RejectedError, captions_in_cell, one_caption
from harness.errors import DataError
from harness.spec.data import TableData

_HEAD = 4096
_ROWS = 10_000
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def candidates(data: TableData, folder: Path) -> Iterator[Candidate | Rejected]:
    """The samples of the rows in order; for each that is none, the reason. `folder` is what image paths start from.

    Raises:
        DataError: the table is missing, unreadable, or lacks a column.
    """
    for batch in _batches(data):
        for row in batch.to_pylist():
            try:
                yield _candidate(data, row, folder)
            except RejectedError as error:
                yield Rejected(str(error), str(row[data.image]))


def _candidate(data: TableData, row: dict[str, Any], folder: Path) -> Candidate:
    key = row[data.image]
    if not isinstance(key, str) or not key.strip():
        raise RejectedError("no image path")
    raw = one_caption(captions_in_cell(row[data.raw]))
    pseudo = {
        source: tuple(text for column in columns for text in captions_in_cell(row[column]))
        for source, columns in data.pseudo.items()
    }
    file = folder / key

    def read(start: int, stop: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    try:
        size = file.stat().st_size
        head = read(0, _HEAD)
    except FileNotFoundError:
        raise RejectedError("image missing") from None
    except (OSError, ValueError):
        raise RejectedError("image unreadable") from None
    return Candidate(key, key, 0, size, head, read, raw, pseudo)


def _batches(data: TableData) -> Iterator[Any]:
    columns = list(dict.fromkeys([data.image, data.raw, *(name for names in data.pseudo.values() for name in names)]))
    path = Path(data.path)
    try:
        if path.suffix.lower() == ".parquet":
            source = pyarrow.parquet.ParquetFile(path)
            _require(columns, source.schema_arrow.names, data)
            yield from source.iter_batches(_ROWS, columns=columns)
        else:
            yield from _text_batches(path, columns, data)
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(
            f"table cannot be read ({reason})", where=data.path, fix="mend it or correct data.path"
        ) from error


def _text_batches(path: Path, columns: list[str], data: TableData) -> Iterator[Any]:
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise DataError("is no table that can be read", where=data.path, fix="give a .csv, .tsv or .parquet file")
    source = pyarrow.csv.open_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )
    _require(columns, source.schema.names, data)
    for batch in source:
        yield batch.select(columns)


def _require(columns: list[str], present: list[str], data: TableData) -> None:
    for column in columns:
        if column not in present:
            raise DataError(
                f"has no column {column!r} (its columns: {', '.join(present)})",
                where=data.path,
                fix="correct data.image, data.raw or data.pseudo",
            )
