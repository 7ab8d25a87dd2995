"""Finds equal captions of a source, so that each text is encoded once. Holds hashes, not texts."""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from harness.base.files import open_plain, replacing
from harness.base.log import say
from harness.base.sums import make_room
from harness.data.dataset.dataset import Dataset

RAW_NAME = "raw"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Distinct:
    """The distinct captions of a source, numbered as they first appear."""

    rows: npt.NDArray[np.int32]
    """[T] text number of each caption, sample by sample."""
    starts: Ints
    """[S + 1] start of each sample's captions in `rows`."""
    first: Ints
    """[U] the caption in which each text first appears."""

    def __len__(self) -> int:
        return len(self.first)

    def texts(self, dataset: Dataset, source: str, lower: bool, numbers: Sequence[int] | range) -> list[str]:
        """The texts with these numbers."""
        found = []
        for caption in self.first[np.asarray(numbers, dtype=np.int64)].tolist():
            sample = int(np.searchsorted(self.starts, caption, side="right")) - 1
            text = captions_of(dataset, source, sample)[caption - int(self.starts[sample])]
            found.append(text.lower() if lower else text)
        return found


def captions_of(dataset: Dataset, source: str, sample: int) -> tuple[str, ...]:
    """The captions of one sample from `raw` or a pseudo-caption source."""
    return (dataset.raw(sample),) if source == RAW_NAME else dataset.pseudo(source, sample)


def distinct(dataset: Dataset, source: str, lower: bool) -> Distinct:
    """Compare the captions of `source` by 128-bit hashes."""
    hashes, counts = bytearray(), array("q")
    for sample in range(len(dataset)):
        texts = captions_of(dataset, source, sample)
        counts.append(len(texts))
        for text in texts:
            text = text.lower() if lower else text
            hashes += hashlib.blake2b(text.encode(), digest_size=16).digest()
    rows, first = numbered(np.frombuffer(hashes, dtype=np.uint64).reshape(-1, 2))
    return Distinct(rows, np.concatenate([[0], np.cumsum(np.frombuffer(counts, dtype=np.int64))]), first)


def numbered(hashes: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int32], Ints]:
    """Number equal hashes [T, 2] alike, in order of appearance. Returns numbers [T] and first positions [U]."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    begins = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(order) else np.empty(0, bool)
    group = np.cumsum(begins) - 1
    first_of_group = order[begins]  # lexsort is stable: the first of a group is the one that appears first
    by_appearance = np.argsort(first_of_group, kind="stable")
    number = np.empty(len(first_of_group), dtype=np.int32)
    number[by_appearance] = np.arange(len(first_of_group), dtype=np.int32)
    rows = np.empty(len(order), dtype=np.int32)
    rows[order] = number[group]
    return rows, first_of_group[by_appearance].astype(np.int64)


def kept_distinct(file: Path, dataset: Dataset, source: str, lower: bool) -> Distinct:
    """Like `distinct`, cached in `file` with a digest. A file that is damaged, or has no digest, is written again."""
    found = _read(file)
    if found is None:
        if os.path.lexists(file):
            say(f"{file} is damaged, or of an earlier version: it is made again")
            make_room(file)
        found = distinct(dataset, source, lower)
        with replacing(file) as aside, aside.open("wb") as stream:
            np.savez(stream, rows=found.rows, starts=found.starts, first=found.first, sha256=_digest(file, found))
    return found


def _read(file: Path) -> Distinct | None:
    try:
        with open_plain(file) as stream, np.load(stream) as arrays:
            found = Distinct(arrays["rows"], arrays["starts"], arrays["first"])
            return found if (arrays["sha256"] == _digest(file, found)).all() else None
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):
        return None


def _digest(file: Path, found: Distinct) -> npt.NDArray[np.uint8]:
    """Of the arrays and of the file's name, so that no other file can take its place."""
    digest = hashlib.sha256(file.name.encode())
    for one in (found.rows, found.starts, found.first):
        digest.update(f"{one.dtype} {one.shape}".encode() + one.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)
