"""An index made by several processes, a file of the data set at a time; the same bytes as one process makes."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from harness.base.machine import cores
from harness.data.dataset.index import ROWS_PER_BATCH, IndexBuilder, IndexSummary, finish, writing
from harness.data.sources.reading import Reading

WORTH_BYTES = 1 << 26
"""Smaller data sets are read by one process: starting others would take longer."""


class _Job(NamedTuple):
    """What the processes share."""

    reading: Reading
    work: Path
    """Folder of the parts."""


_shared: _Job | None = None


def build(folder: Path, reading: Reading) -> IndexSummary | None:
    """Index the samples of `reading` into `folder` as `index.build` does. None, and nothing written, if several
    processes are not worth it, or cannot tell: captions in files of their own are counted across files, and so are
    keys that repeat in several tables.

    Raises:
        DataError: from the files.
        StoreError: `folder` cannot be written.
    """
    global _shared
    files, workers = reading.files.main, cores()
    is_worth = sum(file.stat().st_size for file in files if file.is_file()) >= WORTH_BYTES
    counts_across = bool(reading.joins) or getattr(reading.data, "repeats", "first") == "samples"
    if not is_worth or counts_across or min(workers, len(files)) < 2 or threading.active_count() > 1:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".parts.", dir=folder) as work:
        _shared = _Job(reading, Path(work))  # forked, not pickled
        total = IndexBuilder.of(reading.data)
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(workers, len(files)), mp_context=context) as pool:
            for part in pool.map(_part, range(len(files))):
                total.absorb(part)
        if total.repeats_keys_across_files():
            return None
        with writing(folder, total) as writer:
            for batch in _rows(Path(work), len(files), total.schema):
                writer.write_batch(batch)
        return finish(folder, total)


def _part(number: int) -> IndexBuilder:
    """Index one file; its rows are written beside the others', and what was counted is returned."""
    assert _shared is not None
    builder = IndexBuilder.of(_shared.reading.data)
    with pa.OSFile(str(_path(_shared.work, number)), "wb") as sink, pa.ipc.new_file(sink, builder.schema) as writer:
        builder.write(_shared.reading.candidates([_shared.reading.files.main[number]]), writer)
    return builder


def _path(work: Path, number: int) -> Path:
    return work / f"{number:07d}.arrow"


def _rows(work: Path, parts: int, schema: Any) -> Iterator[Any]:
    """The rows of all parts, in batches as one process writes them: all full but the last, which may be empty."""
    held: list[Any] = []
    count = 0
    with ExitStack() as stack:
        for number in range(parts):
            reader = pa.ipc.open_file(stack.enter_context(pa.memory_map(str(_path(work, number)))))
            for batch in map(reader.get_batch, range(reader.num_record_batches)):
                while count + len(batch) >= ROWS_PER_BATCH:
                    taken = ROWS_PER_BATCH - count
                    yield _joined([*held, batch.slice(0, taken)], schema)
                    held, count, batch = [], 0, batch.slice(taken)
                held.append(batch)
                count += len(batch)
        yield _joined(held, schema)


def _joined(batches: list[Any], schema: Any) -> Any:
    columns = [pa.concat_arrays([batch.column(number) for batch in batches]) for number in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
