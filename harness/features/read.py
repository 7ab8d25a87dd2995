"""Access to a teacher's features by sample and by caption, as needed by batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.features.compute import Wanted
from harness.features.dedup import Ints
from harness.features.resumable_array import Halves, open_array


@dataclass(frozen=True)
class SourceFeatures:
    """Features of one caption source."""

    features: Halves
    """[U, e] memory-mapped."""
    rows: npt.NDArray[np.int32]
    """[T] row of each caption, sample by sample."""
    starts: Ints
    """[S + 1] start of each sample's captions in `rows`."""


class TeacherFeatures:
    """Features by sample index and by caption (source number of `harness.data.dataset.caption_choice`, position)."""

    def __init__(self, image: Halves, sources: Mapping[int, SourceFeatures]) -> None:
        self._image, self._sources = image, sources

    def image(self, samples: Ints) -> Tensor:
        """Unit image features [N, e], float32."""
        return torch.from_numpy(np.asarray(self._image[samples], dtype=np.float32))

    def text(self, samples: Ints, source: Ints, position: Ints) -> Tensor:
        """Unit text features [M, e], float32, of captions: their sample, source number and position, each [M]."""
        found = np.empty((len(samples), self._image.shape[1]), dtype=np.float32)
        for number, one in self._sources.items():
            chosen = source == number
            found[chosen] = one.features[one.rows[one.starts[samples[chosen]] + position[chosen]]]
        return torch.from_numpy(found)


def read_features(wanted: Wanted, numbers: Mapping[int, str]) -> TeacherFeatures:
    """The finished features of `wanted`, with sources by number.

    Raises:
        StoreError: a file is damaged.
    """
    image = open_array(wanted.images, len(wanted.dataset))
    return TeacherFeatures(image, {number: source_features(wanted, name) for number, name in numbers.items()})


def source_features(wanted: Wanted, source: str) -> SourceFeatures:
    """The finished features of one source.

    Raises:
        StoreError: a file is damaged.
    """
    found = wanted.distinct(source)
    return SourceFeatures(open_array(wanted.file(source), len(found)), found.rows, found.starts)
