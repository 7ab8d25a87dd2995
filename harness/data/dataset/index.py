"""The index of a data set: which samples it has, where their images lie, and their captions.

An Arrow file that is memory-mapped, so opening it costs nothing and every process on a machine shares one copy.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.base.files import replacing
from harness.base.sums import make_room, write_sums
from harness.config.data import FileData, Pictures, Verify
from harness.data.dataset import pictures
from harness.data.dataset.pictures import TRAITS, BadImageError
from harness.data.hashing import hash64
from harness.data.sources import arrow
from harness.data.sources.raw_samples import Candidate, Note, RawSample, Rejected, Skipped

ROWS_PER_BATCH = 50_000
MAX_SUSPECTS = 1000
INDEX, ROWS, DIGESTS = "index.arrow", "rows.npy", "digests.npy"


class IndexSummary(NamedTuple):
    """What an index holds."""

    fingerprint: str
    samples: int
    rejected: dict[str, int]
    skipped: dict[str, int]
    notes: tuple[str, ...]
    keys_repeat: bool
    """Whether several shards have samples of one key."""
    sources: tuple[str, ...]
    """Pseudo-caption sources that the samples have."""
    suspects: tuple[str, ...]
    """Files in which samples were rejected, at most MAX_SUSPECTS."""


def build(
    folder: Path, candidates: Iterable[Candidate], sources: Sequence[str], verify: Verify, options: Pictures
) -> IndexSummary:
    """Index `candidates` into `folder`. A source that no sample has is left out; a sample without one of the others is
    rejected, as is one with a bad image or a key that its shard, or its table, had before.

    Raises:
        DataError: from `candidates`.
        StoreError: `folder` cannot be written.
    """
    builder = IndexBuilder(sources, verify, options)
    with writing(folder, builder) as writer:
        builder.write(candidates, writer)
    return finish(folder, builder)


@contextmanager
def writing(folder: Path, builder: IndexBuilder) -> Iterator[Any]:
    """A writer of batches of rows, which become the index in `folder` once all are written.

    Raises:
        StoreError: `folder` cannot be written.
    """
    for name in (INDEX, ROWS, DIGESTS):
        make_room(folder / name)
    with (
        replacing(folder / INDEX) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, builder.schema) as writer,
    ):
        yield writer


def finish(folder: Path, builder: IndexBuilder) -> IndexSummary:
    """Write what belongs to the index in `folder`, and return what it holds."""
    summary, kept, digests = builder.summary()
    for name, values in ((ROWS, kept), (DIGESTS, digests)):
        with replacing(folder / name) as aside, aside.open("wb") as stream:
            np.save(stream, values)
    write_sums(folder, (INDEX, ROWS, DIGESTS))
    return summary


_STRINGS = ("key", "location", "raw")
_INTEGERS = ("offset", "size", "width", "height")

_HAS = 255

Flags = NDArray[np.bool_]
Digests = NDArray[np.void]
"""16 bytes a sample."""


class _Row(NamedTuple):
    texts: tuple[str, str, str]
    """key, location, raw caption."""
    place: tuple[int, int, int, int]
    """offset and size of the image file; width and height of the image."""
    pseudo: Mapping[str, tuple[str, ...]]


class IndexBuilder:
    """Takes candidates in, and counts what is left out."""

    def __init__(self, sources: Sequence[str], verify: Verify, options: Pictures) -> None:
        self.sources, self.verify, self.options = tuple(sources), verify, options
        self.rows: list[_Row] = []
        self._scope, self._keys = "", set[str]()
        self._hashes = array("Q")
        self._digests = bytearray()
        self._has = bytearray()
        self._faults: list[str] = ["no caption"]
        self._rejected: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._traits: Counter[str] = Counter()
        self._notes: dict[str, None] = {}
        self._counted: Counter[str] = Counter()
        """Notes with a count."""
        self._has_global_keys = False
        self._suspects: dict[str, None] = {}

    @classmethod
    def of(cls, data: FileData) -> IndexBuilder:
        """The builder of the index of `data`."""
        return cls(sorted(data.pseudo), data.verify, data.pictures)

    def write(self, candidates: Iterable[Candidate], writer: Any) -> None:
        """Take all candidates in and write their rows; the last batch may be empty."""
        for candidate in candidates:
            self.add(candidate)
            if len(self.rows) == ROWS_PER_BATCH:
                writer.write_batch(self.flush())
        writer.write_batch(self.flush())
        self._keys = set()

    def absorb(self, other: IndexBuilder) -> None:
        """Take in what another builder counted in the files that follow. Its rows are written elsewhere."""
        numbers = np.arange(_HAS + 1, dtype=np.uint8)
        for number, fault in enumerate(other._faults):
            numbers[number] = self._number(fault)
        self._has += numbers[np.frombuffer(other._has, dtype=np.uint8)].tobytes()
        self._hashes.extend(other._hashes)
        self._digests += other._digests
        self._has_global_keys |= other._has_global_keys
        self._notes |= other._notes
        for mine, theirs in (
            (self._rejected, other._rejected),
            (self._skipped, other._skipped),
            (self._traits, other._traits),
            (self._counted, other._counted),
        ):
            mine.update(theirs)
        for location in other._suspects:
            self._suspect(location)

    def repeats_keys_across_files(self) -> bool:
        """Whether keys that are unique within all of the data (see `RawSample.scope`) seem to repeat."""
        return self._has_global_keys and len(np.unique(self._hash_array)) < len(self._hashes)

    @property
    def _hash_array(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._hashes, dtype=np.uint64) if self._hashes else np.empty(0, dtype=np.uint64)

    @property
    def schema(self) -> Any:
        """The columns of the index."""
        strings = [(name, pa.large_string()) for name in _STRINGS]
        integers = [(name, pa.int64()) for name in _INTEGERS]
        lists = [(pseudo_column(source), pa.large_list(pa.large_string())) for source in self.sources]
        return pa.schema([*strings, *integers, *lists])

    def add(self, candidate: Candidate) -> None:
        """Take a sample in, or count why not."""
        match candidate:
            case RawSample():
                if (outcome := self._accept(candidate)) is not None:
                    self._reject(outcome)
            case Rejected():
                self._reject(candidate)
            case Skipped(reason):
                self._skipped[reason] += 1
            case Note(text, 0):
                self._notes[text] = None
            case Note(text, count):
                self._counted[text] += count

    def _reject(self, outcome: Rejected) -> None:
        self._rejected[outcome.reason] += 1
        self._suspect(outcome.location)

    def _suspect(self, location: str) -> None:
        if len(self._suspects) < MAX_SUSPECTS:
            self._suspects[location] = None

    def flush(self) -> Any:
        """The rows since the last flush, as a batch of the index."""
        rows, self.rows = self.rows, []
        places = np.array([row.place for row in rows], dtype=np.int64).reshape(-1, len(_INTEGERS))
        arrays = [
            *(arrow.strings([row.texts[column] for row in rows]) for column in range(len(_STRINGS))),
            *(arrow.integers(places[:, column]) for column in range(len(_INTEGERS))),
            *(arrow.string_lists([row.pseudo[source] for row in rows]) for source in self.sources),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def summary(self) -> tuple[IndexSummary, NDArray[np.int64], Digests]:
        """What was indexed, the rows [samples] that have captions of every source that any has, and the digests of
        these samples [samples]."""
        states = np.frombuffer(self._has, dtype=np.uint8).reshape(-1, 1 + len(self.sources))
        has: Flags = states == _HAS
        present: Flags = np.logical_or.reduce(has, axis=0)
        fits = has | ~present
        rejected = Counter(self._rejected)
        for number, source in enumerate(self.sources, start=1):
            lacking = ~fits[:, number] & fits[:, :number].all(axis=1)
            for fault, count in enumerate(np.bincount(states[lacking, number]).tolist()):
                if count:
                    rejected[f"{self._faults[fault]} from {source}"] = count
        kept = np.flatnonzero(fits.all(axis=1))
        digests = np.frombuffer(self._digests, dtype="V16")[kept]
        fingerprint = hashlib.sha256(digests.tobytes())
        if stated := self.options.science():
            fingerprint.update(json.dumps(stated, sort_keys=True).encode())
        summary = IndexSummary(
            fingerprint=fingerprint.hexdigest(),
            samples=len(kept),
            rejected=dict(sorted(rejected.items())),
            skipped=dict(sorted(self._skipped.items())),
            notes=(
                *self._notes,
                *(f"{count:,} {text}" for text, count in self._counted.items()),
                *(f"{count:,} pictures {TRAITS[name]}" for name, count in self._traits.items()),
            ),
            keys_repeat=len(np.unique(self._hash_array)) < len(self._hashes),
            sources=tuple(source for number, source in enumerate(self.sources, start=1) if present[number]),
            suspects=tuple(self._suspects),
        )
        return summary, kept, digests

    def _accept(self, candidate: RawSample) -> Rejected | None:
        if candidate.scope != self._scope:
            self._scope, self._keys = candidate.scope, set()
        self._has_global_keys |= not candidate.scope
        if candidate.key in self._keys:
            return Rejected("duplicate key", candidate.location)
        try:
            key = candidate.key.encode()
            look = pictures.check(candidate.head, candidate.size, candidate.read, self.verify, self.options)
        except UnicodeEncodeError:
            return Rejected("key is not UTF-8", candidate.location)
        except BadImageError as error:
            return Rejected(str(error), candidate.location)
        self._keys.add(candidate.key)
        self._hashes.append(hash64(key))
        if look.traits:
            self._traits.update(look.traits)
        captions = ", ".join(f"[{_listed(candidate.pseudo[source])}]" for source in self.sources)
        content = f"[{_listed((candidate.key, candidate.raw))}, [{captions}]]".encode() + look.digest
        self._digests += hashlib.sha256(content).digest()[:16]
        self._has.append(_HAS)
        self._has += bytes(self._state(candidate, source) for source in self.sources)
        place = (candidate.offset, candidate.size, look.width, look.height)
        self.rows.append(_Row((candidate.key, candidate.location, candidate.raw), place, candidate.pseudo))
        return None

    def _state(self, candidate: RawSample, source: str) -> int:
        """_HAS, or the number of the reason why the sample has no caption from `source`."""
        if candidate.pseudo[source]:
            return _HAS
        return self._number(candidate.faults.get(source, self._faults[0]))

    def _number(self, fault: str) -> int:
        """The number of a reason; that of the first, once there are too many."""
        if fault not in self._faults and len(self._faults) < _HAS:
            self._faults.append(fault)
        return self._faults.index(fault) if fault in self._faults else 0


def _listed(texts: Iterable[str]) -> str:
    """`texts` as json.dumps writes them within a list."""
    return ", ".join(map(encode_basestring_ascii, texts))


def pseudo_column(source: str) -> str:
    """The index column of a pseudo-caption source."""
    return f"pseudo:{source}"
