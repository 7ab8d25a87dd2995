"""Which captions match which pictures, where that is known: exactly in drawn worlds, approximately by keywords."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.synthetic.captions import SILENT, Claims

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Bits = NDArray[np.uint8]

TRUTH = "truth.npz"
_ATTRIBUTES = "attributes of pictures"
_WORDS = "words of pictures"
_LEXICON = "number of words"


@dataclass(frozen=True)
class Truth(ABC):
    """Which captions match which pictures."""

    sources: tuple[str, ...]
    """`raw` and the pseudo-caption sources."""

    def source(self, name: str) -> int:
        """The number of the source `name`, as `matches` takes it."""
        return self.sources.index(name)

    @abstractmethod
    def matches(self, images: Indices, samples: Indices, sources: Indices, positions: Indices) -> tuple[Mask, Mask]:
        """Which of N images match which of M captions.

        Args:
            images: [N] sample indices of the images.
            samples: [M] sample index of each caption's own image.
            sources: [M] number of each caption's source: an index of `self.sources`.
            positions: [M] position of each caption among those of its source; 0 for raw.

        Returns:
            (match [N, M], informative [M]): caption j holds of image i; caption j says anything. A caption that says
            nothing matches every image, so it is to be left out of precision and recall.
        """


@dataclass(frozen=True)
class AttributeTruth(Truth):
    """True attributes of pictures and the claims of their captions: a caption matches if all that it says holds."""

    attributes: Claims
    """[S, A]"""
    claims: tuple[Claims, ...]
    """For each of `sources`, the claims [S, k, A] of its k captions of each picture."""

    def matches(self, images: Indices, samples: Indices, sources: Indices, positions: Indices) -> tuple[Mask, Mask]:
        """As `Truth.matches`."""
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


@dataclass(frozen=True)
class KeywordTruth(Truth):
    """Words of pictures and of captions. A caption matches if at least half of its words are the picture's.

    This is approximate: authors leave out keywords, and words do not say everything about a picture.
    """

    words: Bits
    """[S, B]: bits of the words that hold for each picture."""
    named: tuple[Bits, ...]
    """For each of `sources`, bits [S, k, B] of the words that its captions name."""
    lexicon: int
    """Number of words."""

    def matches(self, images: Indices, samples: Indices, sources: Indices, positions: Indices) -> tuple[Mask, Mask]:
        """As `Truth.matches`."""
        packed = np.empty((len(samples), self.words.shape[1]), dtype=np.uint8)
        for number, named in enumerate(self.named):
            chosen = sources == number
            packed[chosen] = named[samples[chosen], positions[chosen]]
        said = np.unpackbits(packed, axis=1, count=self.lexicon).astype(np.float32)
        held = np.unpackbits(self.words[images], axis=1, count=self.lexicon).astype(np.float32)
        total = said.sum(axis=1)
        return 2 * (held @ said.T) >= total, total > 0


def save_truth(file: Path, attributes: Claims, claims: Mapping[str, Claims]) -> None:
    """Write what `load_truth` reads: true attributes [S, A] and, by source, claims [S, k, A]."""
    np.savez(file, allow_pickle=False, **{_ATTRIBUTES: attributes, **claims})


def save_keyword_truth(file: Path, words: Mask, named: Mapping[str, Mask]) -> None:
    """Write what `load_truth` reads: words of pictures [S, W] and, by source, those of captions [S, k, W]."""
    packed = {source: np.packbits(one, axis=-1) for source, one in named.items()}
    lexicon = np.array(words.shape[-1])
    np.savez(file, allow_pickle=False, **{_WORDS: np.packbits(words, axis=-1), _LEXICON: lexicon, **packed})


def load_truth(file: Path) -> Truth:
    """The truth that was written beside generated shards."""
    with np.load(file) as arrays:
        sources = tuple(name for name in arrays.files if name not in (_ATTRIBUTES, _WORDS, _LEXICON))
        by_source = tuple(arrays[name] for name in sources)
        if _ATTRIBUTES in arrays.files:
            return AttributeTruth(sources, arrays[_ATTRIBUTES], by_source)
        return KeywordTruth(sources, arrays[_WORDS], by_source, int(arrays[_LEXICON]))
