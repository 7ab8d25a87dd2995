"""What is really so, where it is known: a caption matches every picture of which all that it says holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.synthetic.captions import SILENT, Claims

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

TRUTH = "truth.npz"
_ATTRIBUTES = "attributes of pictures"


@dataclass(frozen=True)
class Truth:
    """True attributes of pictures and the claims of their captions."""

    attributes: Claims
    """[S, A]"""
    claims: tuple[Claims, ...]
    """For each of `sources`, the claims [S, k, A] of its k captions of each picture."""
    sources: tuple[str, ...]
    """`raw` and the pseudo-caption sources."""

    def source(self, name: str) -> int:
        """The number of the source `name`, as `matches` takes it."""
        return self.sources.index(name)

    def matches(self, images: Indices, samples: Indices, sources: Indices, positions: Indices) -> tuple[Mask, Mask]:
        """Which of N images match which of M captions.

        Args:
            images: [N] sample indices of the images.
            samples: [M] sample index of each caption's own image.
            sources: [M] number of each caption's source: an index of `self.sources`.
            positions: [M] position of each caption among those of its source; 0 for raw.

        Returns:
            (match [N, M], informative [M]): all that caption j says holds of image i; caption j says anything. A
            caption that says nothing matches every image, so it is to be left out of precision and recall.
        """
        said = self.said(samples, sources, positions)
        match: Mask = np.ones((len(images), len(samples)), dtype=np.bool_)
        for column in range(said.shape[1]):
            true = self.attributes[images, column]
            match &= (said[:, column] == SILENT)[None, :] | (true[:, None] == said[None, :, column])
        return match, (said != SILENT).any(axis=1)

    def said(self, samples: Indices, sources: Indices, positions: Indices) -> Claims:
        """Claims [M, A] of captions; arguments as in `matches`."""
        said = np.empty((len(samples), self.attributes.shape[1]), dtype=np.int8)
        for number, claims in enumerate(self.claims):
            chosen = sources == number
            said[chosen] = claims[samples[chosen], positions[chosen]]
        return said


def save_truth(file: Path, attributes: Claims, claims: Mapping[str, Claims]) -> None:
    """Write what `load_truth` reads: true attributes [S, A] and, by source, claims [S, k, A]."""
    np.savez(file, allow_pickle=False, **{_ATTRIBUTES: attributes, **claims})


def load_truth(file: Path) -> Truth:
    """The truth that was written beside generated shards."""
    with np.load(file) as arrays:
        sources = tuple(name for name in arrays.files if name != _ATTRIBUTES)
        return Truth(arrays[_ATTRIBUTES], tuple(arrays[name] for name in sources), sources)
