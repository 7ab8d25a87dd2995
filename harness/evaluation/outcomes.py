"""What happened to every sample of an evaluation, as a Parquet table beside the record."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import StoreError
from harness.base.files import read_bytes, require_plain, write_bytes
from harness.evaluation.measured import Selected
from harness.evaluation.metrics import Index
from harness.evaluation.sets import EvaluationSet
from harness.runs.identity import ID_LENGTH
from harness.runs.record import Task

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One row for each sample (classification) or query (retrieval).

    Classification and linear probes have `key`, `label`, `prediction` and `rank` of the label. Multi-label sets have
    the number of an image's `labels` and the `rank` of the best of them, 0 where it has none. Retrieval has `direction`
    (image_retrieval: a caption looks for its image; text_retrieval: an image for any of its captions), `key` of the
    image, `caption` (its number among the image's captions, -1 where the image is the query) and `rank` of the first
    hit. Pair tasks have `key`, `category`, `texts` and `images` (how many the group has), `image` (the first of them,
    numbered), `found_texts` and `found_images`. Ranks begin at 1; recall@k is the share of ranks up to k, acc1 that of
    ranks of 1.
    """

    set: str
    task: Task
    protocol_id: str
    columns: Columns


def classification_columns(evaluation_set: EvaluationSet, predictions: Index, ranks: Index) -> Columns:
    """Columns of N rows from predictions [N] and ranks of the labels [N]."""
    keys, labels = np.array(evaluation_set.keys, dtype=object), np.array(evaluation_set.labels)
    return {"key": keys, "label": labels, "prediction": predictions, "rank": ranks}


def multilabel_columns(evaluation_set: EvaluationSet, predictions: Index, ranks: Index) -> Columns:
    """Columns of N rows from predictions [N] and the ranks [N] of the best of each image's classes."""
    keys, counts = np.array(evaluation_set.keys, dtype=object), [len(one) for one in evaluation_set.targets]
    return {"key": keys, "labels": np.array(counts), "prediction": predictions, "rank": ranks}


def retrieval_columns(evaluation_set: EvaluationSet, image_retrieval: Index, text_retrieval: Index) -> Columns:
    """Columns of M + N rows from the ranks of the M captions' images and of the N images' first captions."""
    keys = np.array(evaluation_set.keys, dtype=object)
    counts = [len(captions) for captions in evaluation_set.captions]
    names = np.array(["image_retrieval", "text_retrieval"], dtype=object)
    return {
        "direction": np.repeat(names, [len(image_retrieval), len(text_retrieval)]),
        "key": np.concatenate([np.repeat(keys, counts), keys]),
        "caption": np.concatenate([*(np.arange(count) for count in counts), np.full(len(keys), -1)]),
        "rank": np.concatenate([image_retrieval, text_retrieval]),
    }


def selection_columns(evaluation_set: EvaluationSet, found: Selected) -> Columns:
    """Columns of G rows, one for each group of a pair task."""
    keys = np.array([group.key for group in evaluation_set.groups], dtype=object)
    categories = np.array([group.category for group in evaluation_set.groups], dtype=object)
    return {"key": keys, "category": categories, **vars(found)}


def write_outcomes(folder: Path, outcomes: Outcomes) -> None:
    """Write `outcomes` to a Parquet file in `folder` in one atomic step; set, task and protocol are its metadata.

    No file is replaced, since a record may have sealed it: if another machine's outcomes under this protocol are there
    and differ, these get a file beside them.

    Raises:
        StoreError: the folder cannot be written.
    """
    import pyarrow as pa  # an evaluation outside a run keeps no outcomes
    import pyarrow.parquet as pq

    metadata = {"set": outcomes.set, "task": outcomes.task, "protocol_id": outcomes.protocol_id}
    table = pa.table({name: _arrow(column) for name, column in outcomes.columns.items()})
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd")
    name, found = f"{outcomes.set}.{outcomes.protocol_id}", content.getvalue()
    path = folder / f"{name}.parquet"
    if path.exists() and read_bytes(path) != found:
        path = folder / f"{name}.re-{hashlib.sha256(found).hexdigest()[:ID_LENGTH]}.parquet"
    if not path.exists():
        write_bytes(path, found)


def _arrow(column: NDArray[Any]) -> Any:
    """`column` [N] of texts, booleans or numbers as an array of Arrow, the same as `pyarrow.array(column)`.

    That function imports pandas, if it is installed, which takes longer than the evaluation of a small set.
    """
    import pyarrow as pa

    match column.dtype.kind:
        case "O":
            texts = [text.encode() for text in column]
            ends = np.cumsum([0, *map(len, texts)])
            if ends[-1] > np.iinfo(np.int32).max:
                return pa.array(column)  # which splits it
            kind, parts = pa.string(), [ends.astype(np.int32), b"".join(texts)]
        case "b":
            kind, parts = pa.bool_(), [np.packbits(column, bitorder="little")]
        case _:
            kind, parts = pa.from_numpy_dtype(column.dtype), [np.ascontiguousarray(column)]
    return pa.Array.from_buffers(kind, len(column), [None, *(pa.py_buffer(part) for part in parts)])


def read_outcomes(path: Path) -> Outcomes:
    """The outcomes in the Parquet file `path`.

    Raises:
        StoreError: the file is missing, damaged or holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        require_plain(path)
        table = pq.read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        columns = {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
        return Outcomes(metadata["set"], _task(metadata["task"]), metadata["protocol_id"], columns)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise StoreError(
            f"cannot be read as outcomes ({error})", where=str(path), fix="delete it and evaluate again"
        ) from error


def _task(name: str) -> Task:
    if name not in get_args(Task):
        raise ValueError(f"unknown task {name}")
    return cast(Task, name)
