"""Rows of tables on disk: CSV, TSV, Parquet and JSON lines, a bounded number at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from harness.base.errors import DataError
from harness.base.files import open_plain, require_plain

Row = dict[str, Any]

_ROWS = 10_000
_ROWS_WITH_FILES = 64
"""Rows at a time where a column holds whole files."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_LONGEST_CELL = 1 << 24
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")


class TextForm(NamedTuple):
    """How the cells of a text table are told apart; None is found out."""

    separator: str | None = None
    quoting: bool | None = None


UNSTATED = TextForm()


def rows(
    file: Path, columns: Sequence[str], fix: str, form: TextForm = UNSTATED, notes: list[str] | None = None
) -> Iterator[Row]:
    """The named columns of every row, in order. Cells of CSV and TSV are texts; others have their own types.

    Args:
        fix: what to correct where a column is missing.
        notes: takes a sentence for each thing that was guessed.

    Raises:
        DataError: the table is missing, unreadable, of an unknown sort, or lacks a column.
    """
    wanted = list(dict.fromkeys(columns))
    try:
        match file.suffix.lower():
            case ".parquet":
                found = _parquet_rows(file, wanted, fix)
            case ".jsonl":
                found = _json_rows(file, wanted, fix)
            case ".csv" | ".tsv":
                found = _text_rows(file, wanted, fix, form, [] if notes is None else notes)
            case _:
                kinds = ", ".join(SUFFIXES)
                raise DataError("is not a readable table", where=str(file), fix=f"give one of {kinds}")
        yield from found
    except UnicodeDecodeError as error:
        what = f"table is not UTF-8 (after {error.object[max(error.start - 20, 0) : error.start]!r})"
        raise DataError(what, where=str(file), fix="convert it to UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(
            f"table cannot be read ({reason})", where=str(file), fix="repair it or correct its path"
        ) from error


def _parquet_rows(file: Path, columns: list[str], fix: str) -> Iterator[Row]:
    require_plain(file)
    source = pyarrow.parquet.ParquetFile(file)
    schema = source.schema_arrow
    _require(columns, schema.names, file, fix)
    holds_files = any(_holds_files(schema.field(name).type) for name in columns)
    for batch in source.iter_batches(_ROWS_WITH_FILES if holds_files else _ROWS, columns=columns):
        yield from batch.to_pylist()


def _holds_files(kind: Any) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _text_rows(file: Path, columns: list[str], fix: str, form: TextForm, notes: list[str]) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    separator = form.separator or _separator(file, columns, notes)
    quoting = _is_quoted(file, separator, notes) if form.quoting is None else form.quoting
    with _opened(file) as stream:
        reader = csv.reader(
            stream, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE, strict=True
        )
        begins, suspects = 1, 0
        try:
            names = next(reader, [])
            _require(columns, names, file, fix)
            places = [(column, names.index(column)) for column in columns]
            begins = reader.line_num + 1
            for row in reader:
                if len(row) != len(names) and row:
                    what = f"line {begins} has {len(row)} cells, and the header {len(names)}"
                    advice = "quote cells that hold the separator, or set data.separator or data.quoting"
                    raise DataError(what, where=str(file), fix=advice)
                if row:
                    suspects += reader.line_num > begins and _holds_rows(row, separator)
                    yield {column: row[place] for column, place in places}
                begins = reader.line_num + 1
        except csv.Error as error:
            what = f"the row that begins in line {begins} cannot be read ({error})"
            advice = "close its quotes, or set data.quoting = false if cells are not quoted"
            raise DataError(what, where=str(file), fix=advice) from None
    if suspects:
        notes.append(f"{file}: {suspects:,} quoted cells hold lines that look like rows of the table")


def _opened(file: Path) -> TextIOWrapper:
    return TextIOWrapper(open_plain(file), encoding="utf-8-sig", newline="")


def _separator(file: Path, columns: list[str], notes: list[str]) -> str:
    """As the file's name says, unless the header has the columns only with another."""
    usual = _SEPARATORS[file.suffix.lower()]
    with _opened(file) as stream:
        header = stream.readline()
    for separator in (usual, *(one for one in _NAMES if one != usual)):
        if set(columns) <= set(next(csv.reader([header], delimiter=separator), [])):
            if separator != usual:
                notes.append(f"{file}: cells are separated by {_NAMES[separator]}")
            return separator
    return usual


def _is_quoted(file: Path, separator: str, notes: list[str]) -> bool:
    """Whether cells may stand in quotes: in `.csv`; in `.tsv` if every quote that begins a cell closes the same one."""
    if file.suffix.lower() == ".csv":
        return True
    with _opened(file) as stream:
        begun = sum(line.startswith('"') + line.count(f'{separator}"') for line in stream)
    quoting = begun > 0 and _is_consistent(file, separator)
    if begun:
        how = "they are read as quotes" if quoting else "they are taken as text"
        notes.append(f"{file}: {begun:,} cells begin with a quote; {how} (data.quoting)")
    return quoting


def _is_consistent(file: Path, separator: str) -> bool:
    """Whether all rows, read with quoting, have as many cells as the header, and none swallows others."""
    with _opened(file) as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        try:
            width = len(next(reader, []))
            return all(not row or (len(row) == width and not _holds_rows(row, separator)) for row in reader)
        except csv.Error:
            return False


def _holds_rows(row: list[str], separator: str) -> bool:
    """Whether a cell of several lines has one with as many separators as a row."""
    return len(row) > 1 and any(
        line.count(separator) == len(row) - 1 for cell in row if "\n" in cell for line in cell.split("\n")[1:]
    )


def _json_rows(file: Path, columns: list[str], fix: str) -> Iterator[Row]:
    with open_plain(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(f"line {number} is not a JSON object", where=str(file), fix="repair or delete the line")
            if number == 1:
                _require(columns, list(row), file, fix)
            yield {column: row.get(column) for column in columns}


def _require(columns: list[str], present: list[str], file: Path, fix: str) -> None:
    for column in columns:
        if present.count(column) > 1:
            raise DataError(f"has several columns {column!r}", where=str(file), fix="rename all but one")
        if column not in present:
            raise DataError(f"has no column {column!r} (its columns: {', '.join(present)})", where=str(file), fix=fix)
