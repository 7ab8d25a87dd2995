"""Several data sets as one, each with its share of every epoch.

The order of an epoch is a function of (seed, epoch), as that of one data set is. Each source is visited in passes: a
new random order of all its samples each time. An epoch takes the next samples of each source, as many as its share says
to within one sample, and shuffles them together. So the samples of a source are visited equally often to within one,
and training can go on from any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset.dataset import Dataset
from harness.data.proportions import Proportions
from harness.data.rng import stream
from harness.runs.record import DataReport


def mixed_order(proportions: Proportions, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples of an epoch [proportions.epoch] in their order; numbers go on from source to source."""
    offsets = [0, *accumulate(proportions.sizes)]
    visits = zip(proportions.visited(epoch), proportions.visited(epoch + 1), strict=True)
    parts = [
        offsets[number] + _visits(number, proportions.sizes[number], range(*ends), seed)
        for number, ends in enumerate(visits)
    ]
    return stream("epoch order", seed, epoch).permutation(np.concatenate(parts))


def _visits(number: int, size: int, wanted: range, seed: int) -> NDArray[np.int64]:
    """The samples of a source at some of its visits; each pass over its `size` samples has an order of its own."""
    passes = range(wanted.start // size, (wanted.stop - 1) // size + 1)
    visits = [stream("pass over a source", seed, number, one).permutation(size) for one in passes]
    first = passes.start * size
    return np.concatenate(visits)[wanted.start - first : wanted.stop - first]


class Mixture(Dataset):
    """Data sets one after the other, numbered through, in the order of their names."""

    def __init__(self, parts: Mapping[str, Dataset], proportions: Proportions, report: DataReport) -> None:
        self._names, self._parts_of = tuple(parts), tuple(parts.values())
        self._offsets = np.cumsum([0, *map(len, self._parts_of)])
        self._proportions = proportions
        self.report = report
        shared = set.intersection(*(set(part.sources) for part in self._parts_of))
        self.sources = tuple(source for source in self._parts_of[0].sources if source in shared)
        self.truth = None

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def epoch_samples(self) -> int:
        """Images in an epoch."""
        return self._proportions.epoch

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order [epoch_samples]."""
        return mixed_order(self._proportions, seed, epoch)

    @property
    def keys(self) -> list[str]:
        """The key of each sample, below its source's name."""
        named = zip(self._names, self._parts_of, strict=True)
        return [f"{name}/{key}" for name, part in named for key in part.keys]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Width and height [S, 2] of the images in pixels."""
        return np.concatenate([part.sizes for part in self._parts_of])

    def content(self, i: int) -> bytes:
        """The image file of sample `i`; raises as its source's."""
        number, row = self._place(i)
        return self._parts_of[number].content(row)

    def decoded(self, i: int, content: bytes) -> Image.Image:
        """The image of sample `i` from its `content`; raises as its source's."""
        number, row = self._place(i)
        return self._parts_of[number].decoded(row, content)

    def raw(self, i: int) -> str:
        """The raw caption of sample `i`."""
        number, row = self._place(i)
        return self._parts_of[number].raw(row)

    def pseudo(self, source: str, i: int) -> tuple[str, ...]:
        """The pseudo-captions of sample `i` from `source`, which every source of the mixture has."""
        self._require(source)
        number, row = self._place(i)
        return self._parts_of[number].pseudo(source, row)

    def caption_counts(self, source: str) -> NDArray[np.int64]:
        """How many pseudo-captions of `source` each sample has [S]."""
        self._require(source)
        return np.concatenate([part.caption_counts(source) for part in self._parts_of])

    def captions_digest(self, source: str | None) -> str:
        """A digest of the captions of `source` (None: the raw ones), source by source."""
        if source is not None:
            self._require(source)
        digests = [part.captions_digest(source) for part in self._parts_of]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _key(self, i: int) -> str:
        number, row = self._place(i)
        return f"{self._names[number]}/{self._parts_of[number]._key(row)}"

    def _place(self, i: int) -> tuple[int, int]:
        """The source of sample `i`, and its number there."""
        number = int(np.searchsorted(self._offsets, i, side="right")) - 1
        return number, int(i - self._offsets[number])
