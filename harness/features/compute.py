"""Computes a teacher's features: selects the arrays, and fills them part by part with fixed batches.

A batch always holds the same rows, whichever process computes it and whatever was killed before. The finished arrays
are therefore identical.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.data.dataset.dataset import Dataset
from harness.features.dedup import RAW_NAME, Distinct, kept_distinct
from harness.features.resumable_array import Halves, ResumableArray, reopen_if_damaged
from harness.models import Towers

BATCH = 512
IMAGE = "image"
DIGITS = 24
"""Of a digest of captions in a file name."""
_TIMED = 64


@dataclass(frozen=True)
class Wanted:
    """Features of one data set from one teacher."""

    folder: Path
    dataset: Dataset
    sources: tuple[str, ...]
    """Caption sources, including `raw`."""
    lower: bool = False
    """Whether texts are lower-cased first."""
    _digests: dict[str, str] = field(default_factory=dict, compare=False)

    def stem(self, source: str) -> str:
        """The file name of a source's features, without its ending: a digest of its captions, whatever it is called."""
        digest = self._digests.get(source) or self.dataset.captions_digest(None if source == RAW_NAME else source)
        self._digests[source] = digest
        return f"captions-{digest[:DIGITS]}{'.lower' if self.lower else ''}"

    def file(self, source: str) -> Path:
        """The features of a source."""
        return self.folder / f"{self.stem(source)}.npy"

    @property
    def images(self) -> Path:
        """The features of the images."""
        return self.folder / f"{IMAGE}.npy"

    def distinct(self, source: str) -> Distinct:
        """The distinct captions of a source."""
        return kept_distinct(self.folder / f"{self.stem(source)}.rows.npz", self.dataset, source, self.lower)

    def reopen_damaged(self) -> list[str]:
        """Make arrays that are damaged unfinished; returns a sentence about each. Reads all features."""
        return [found for file, rows in self.arrays.items() if (found := reopen_if_damaged(file, rows)) is not None]

    @property
    def arrays(self) -> dict[Path, int]:
        """The number of rows of each array, by file."""
        return {self.images: len(self.dataset)} | {self.file(name): len(self.distinct(name)) for name in self.sources}

    @property
    def is_done(self) -> bool:
        """Whether all features exist."""
        return all(file.exists() for file in [self.images, *map(self.file, self.sources)])


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of computing the missing features, measured on one small batch."""

    images: int
    texts: int
    width: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return 2 * self.width * (self.images + self.texts)


class Extraction:
    """Features of `wanted` by `towers`, on `device`; `threads` decode images."""

    def __init__(self, wanted: Wanted, towers: Towers, device: torch.device, threads: int = 1) -> None:
        self._wanted, self._device, self._threads = wanted, device, threads
        self._towers = towers.to(device).eval()
        self._width = self._encoded_texts(["a"]).shape[1]
        self._texts = {source: wanted.distinct(source) for source in wanted.sources}

    def estimate(self) -> Estimate:
        """Estimated cost of the rest on this device."""
        arrays = [self._array(name) for name in (IMAGE, *self._wanted.sources)]
        rows = [sum(map(len, array.missing())) for array in arrays]
        image = self._timed(lambda: self._encoded_images(range(min(_TIMED, len(self._wanted.dataset)))))
        source, found = next(iter(self._texts.items()))
        texts = found.texts(self._wanted.dataset, source, self._wanted.lower, range(min(_TIMED, len(found))))
        text = self._timed(lambda: self._encoded_texts(texts))
        seconds = image / _TIMED * rows[0] + text / max(len(texts), 1) * sum(rows[1:])
        return Estimate(rows[0], sum(rows[1:]), self._width, seconds)

    def compute(self, shard: tuple[int, int] = (0, 1), said: Callable[[str], None] = lambda _: None) -> bool:
        """Compute the missing parts of one shard. Returns whether all features then exist.

        Raises:
            DataError: an image cannot be decoded.
            StoreError: the disk is full.
        """
        done = True
        for name in (IMAGE, *self._wanted.sources):
            array = self._array(name)
            for rows in array.missing(shard):
                array.write(rows, self._part(name, rows))
                said(f"{name}: {rows.stop:,} of {array.rows:,}")
            done &= array.finish()
        return done

    def _array(self, name: str) -> ResumableArray:
        if name == IMAGE:
            return ResumableArray(self._wanted.images, len(self._wanted.dataset), self._width)
        return ResumableArray(self._wanted.file(name), len(self._texts[name]), self._width)

    def _part(self, name: str, rows: range) -> Halves:
        batches = (range(start, min(start + BATCH, rows.stop)) for start in range(rows.start, rows.stop, BATCH))
        if name == IMAGE:
            return _joined(self._encoded_images(batch) for batch in batches)
        found, wanted = self._texts[name], self._wanted
        return _joined(self._encoded_texts(found.texts(wanted.dataset, name, wanted.lower, batch)) for batch in batches)

    def _encoded_images(self, rows: range) -> Tensor:
        dataset, towers = self._wanted.dataset, self._towers

        def seen(sample: int, content: bytes) -> Tensor:
            return towers.preprocess(dataset.decoded(sample, content))

        contents = [dataset.content(sample) for sample in rows]
        if self._threads > 1:
            with ThreadPoolExecutor(self._threads) as pool:
                pixels = list(pool.map(seen, rows, contents))
        else:
            pixels = [seen(sample, content) for sample, content in zip(rows, contents, strict=True)]
        with torch.inference_mode():
            return towers.encode_image(torch.stack(pixels).to(self._device))

    def _encoded_texts(self, texts: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            return self._towers.encode_text(self._towers.tokenize(list(texts)).to(self._device))

    def _timed(self, encode: Callable[[], Tensor]) -> float:
        encode()
        start = time.perf_counter()
        encode().cpu()
        return time.perf_counter() - start


def _joined(features: Iterator[Tensor]) -> Halves:
    return np.concatenate([part.cpu().numpy().astype(np.float16) for part in features])
