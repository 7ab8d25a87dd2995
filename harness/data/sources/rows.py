"""Rows of tables on disk: CSV, TSV, Parquet and JSON lines, a bounded number at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from harness.base.errors import DataError

Row = dict[str, Any]

_ROWS = 10_000
_ROWS_WITH_FILES = 64
"""Rows at a time where a column holds whole files."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")


def rows(file: Path, columns: Sequence[str], fix: str) -> Iterator[Row]:
    """The named columns of every row, in order. Cells of CSV and TSV are texts; others have their own types.

    Args:
        fix: what to correct where a column is missing.

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
                found = _text_rows(file, wanted, fix)
            case _:
                kinds = ", ".join(SUFFIXES)
                raise DataError("is no table that can be read", where=str(file), fix=f"give one of {kinds}")
        yield from found
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(
            f"table cannot be read ({reason})", where=str(file), fix="mend it or correct its path"
        ) from error


def _parquet_rows(file: Path, columns: list[str], fix: str) -> Iterator[Row]:
    source = pyarrow.parquet.ParquetFile(file)
    schema = source.schema_arrow
    _require(columns, schema.names, file, fix)
    holds_files = any(_holds_files(schema.field(name).type) for name in columns)
    for batch in source.iter_batches(_ROWS_WITH_FILES if holds_files else _ROWS, columns=columns):
        yield from batch.to_pylist()


def _holds_files(kind: Any) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _text_rows(file: Path, columns: list[str], fix: str) -> Iterator[Row]:
    source = pyarrow.csv.open_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter=_DELIMITERS[file.suffix.lower()], newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )
    _require(columns, source.schema.names, file, fix)
    for batch in source:
        yield from batch.select(columns).to_pylist()


def _json_rows(file: Path, columns: list[str], fix: str) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"line {number} is no JSON object", where=str(file), fix="mend or delete the line")
            if number == 1:
                _require(columns, list(row), file, fix)
            yield {column: row.get(column) for column in columns}


def _require(columns: list[str], present: list[str], file: Path, fix: str) -> None:
    for column in columns:
        if column not in present:
            raise DataError(f"has no column {column!r} (its columns: {', '.join(present)})", where=str(file), fix=fix)
