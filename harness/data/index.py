"""The index of a data set: which samples it has, where their images lie, and their captions.

An Arrow file that is memory-mapped, so opening it costs nothing and every process on a machine shares one copy.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.data import pictures
from harness.data.candidates import Candidate, Rejected
from harness.data.pictures import BadImageError
from harness.files import replacing
from harness.spec.data import Verify

ROWS_PER_BATCH = 50_000
MAX_SUSPECTS = 1000
INDEX, ROWS = "index.arrow", "rows.npy"


class Summary(NamedTuple):
    """What an index holds."""

    fingerprint: str
    samples: int
    rejected: dict[str, int]
    sources: tuple[str, ...]
    """Pseudo-caption sources that the samples have."""
    suspects: tuple[str, ...]
    """Files in which samples were rejected, at most MAX_SUSPECTS."""


def build(folder: Path, candidates: Iterable[Candidate | Rejected], sources: Sequence[str], verify: Verify) -> Summary:
    """Index `candidates` into `folder`. A source that no sample has is left out; a sample without one of the others is
    rejected, as is one with a bad image or a key that was seen before.

    Raises:
        DataError: from `candidates`.
        StoreError: `folder` cannot be written.
    """
    builder = _Builder(sources, verify)
    with (
        replacing(folder / INDEX) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, builder.schema) as writer,
    ):
        for candidate in candidates:
            builder.add(candidate)
            if len(builder.rows) == ROWS_PER_BATCH:
                writer.write_batch(builder.flush())
        writer.write_batch(builder.flush())
    summary, kept = builder.summary()
    with replacing(folder / ROWS) as aside, aside.open("wb") as stream:
        np.save(stream, kept)
    return summary


Flags = NDArray[np.bool_]


class _Builder:
    def __init__(self, sources: Sequence[str], verify: Verify) -> None:
        self.sources, self.verify = tuple(sources), verify
        self.schema = schema(self.sources)
        self.rows: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._digests = bytearray()
        self._has = bytearray()
        self._rejected: Counter[str] = Counter()
        self._suspects: dict[str, None] = {}

    def add(self, candidate: Candidate | Rejected) -> None:
        if isinstance(candidate, Candidate):
            reason = self._accept(candidate)
            outcome = None if reason is None else Rejected(reason, candidate.location)
        else:
            outcome = candidate
        if outcome is not None:
            self._rejected[outcome.reason] += 1
            if len(self._suspects) < MAX_SUSPECTS:
                self._suspects[outcome.location] = None

    def flush(self) -> Any:
        batch = pa.RecordBatch.from_pylist(self.rows, schema=self.schema)
        self.rows = []
        return batch

    def summary(self) -> tuple[Summary, NDArray[np.int64]]:
        has: Flags = np.frombuffer(self._has, dtype=np.uint8).reshape(-1, max(len(self.sources), 1)).astype(bool)
        present: Flags = np.logical_or.reduce(has, axis=0)
        complete = (has | ~present).all(axis=1)
        rejected = Counter(self._rejected)
        for column, source in enumerate(self.sources):
            lacking = int((present[column] & ~has[:, column] & has[:, :column].all(axis=1)).sum()) if len(has) else 0
            if lacking:
                rejected[f"no caption from {source}"] += lacking
        kept = np.flatnonzero(complete)
        digests = np.frombuffer(self._digests, dtype="V16")[kept]
        fingerprint = hashlib.sha256(digests.tobytes()).hexdigest()
        found = tuple(source for column, source in enumerate(self.sources) if present[column])
        return Summary(fingerprint, len(kept), dict(sorted(rejected.items())), found, tuple(self._suspects)), kept

    def _accept(self, candidate: Candidate) -> str | None:
        """Take `candidate` in, or say why not."""
        if candidate.key in self._keys:
            return "duplicate key"
        try:
            candidate.key.encode()
            width, height, image = pictures.check(candidate.head, candidate.size, candidate.read, self.verify)
        except UnicodeEncodeError:
            return "key is not UTF-8"
        except BadImageError as error:
            return str(error)
        self._keys.add(candidate.key)
        captions = [candidate.pseudo[source] for source in self.sources]
        content = json.dumps([candidate.key, candidate.raw, captions]).encode() + image
        self._digests += hashlib.sha256(content).digest()[:16]
        self._has += bytes(bool(texts) for texts in captions) or b"\1"
        texts = {pseudo_column(source): list(texts) for source, texts in zip(self.sources, captions, strict=True)}
        place = {"key": candidate.key, "location": candidate.location, "offset": candidate.offset}
        self.rows.append(
            place | {"size": candidate.size, "width": width, "height": height, "raw": candidate.raw} | texts
        )
        return None


def schema(sources: Sequence[str]) -> Any:
    """The columns of an index."""
    fixed = [
        ("key", pa.large_string()),
        ("location", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("raw", pa.large_string()),
    ]
    return pa.schema([*fixed, *((pseudo_column(source), pa.large_list(pa.large_string())) for source in sources)])


def pseudo_column(source: str) -> str:
    """The index column of a pseudo-caption source."""
    return f"pseudo:{source}"
