"""What was measured of a set, from which each of its metrics is computed. Features come from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.metrics import Index, Outcome

if TYPE_CHECKING:
    from torch import Tensor

Features = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """The features of a retrieval set in the cache of features."""

    images: str
    """What the cache calls those of the N images."""
    texts: str
    """What it calls those of the U different captions."""
    text: Index
    """[M] which of the different captions each caption is."""


@dataclass(frozen=True, eq=False)
class Classified:
    """N samples of a classification set, zero-shot or by a linear probe."""

    ranks: Index
    """[N] rank of each sample's label, from 1."""
    predictions: Index
    """[N]"""
    labels: Index
    """[N]"""
    classes: int
    """C, the number of classes."""
    scored: Callable[[], Tensor]
    """Makes `logits`."""

    @cached_property
    def logits(self) -> Tensor:
        """[N, C] logits; zero-shot, 100 times the cosines."""
        return self.scored()


@dataclass(frozen=True, eq=False)
class Multilabelled:
    """N samples of a multi-label set of C classes."""

    logits: Tensor
    """[N, C]"""
    targets: Tensor
    """[N, C], true where a sample has the class."""


@dataclass(frozen=True, eq=False)
class Retrieved:
    """M captions of N images."""

    of_captions: Index
    """[M] rank of each caption's image among the N images, from 1."""
    of_images: Index
    """[N] rank of each image's first caption among the M captions, from 1."""
    owner: Index
    """[M] the image that each caption belongs to."""
    embedded: Callable[[], tuple[Tensor, Tensor]]
    """Makes `features`."""
    cached: CachedFeatures | None = None
    """Where the features are kept; None if they are not."""
    read: Callable[[], tuple[Features, Features]] | None = None
    """Makes `arrays` without torch; None to make them from `features`."""

    @cached_property
    def arrays(self) -> tuple[Features, Features]:
        """`features` in float64, as arrays. If they are kept, no torch is needed."""
        if self.read is not None:
            return self.read()
        images, captions = (side.cpu().double().numpy() for side in self.features)
        return images, captions

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """Unit features of the images [N, d] and of the captions [M, d]."""
        return self.embedded()


@dataclass(frozen=True, eq=False)
class Selected:
    """G groups of images and texts of a pair task."""

    found_texts: Outcome
    """[G] whether each image's own text has its highest score."""
    found_images: Outcome
    """[G] whether each text's own image has its highest score."""
    texts: Index
    """[G] how many texts a group has."""
    images: Index
    """[G] how many images a group has."""
    image: Index
    """[G] the first of them; groups that share it depend on one another."""


Measured = Classified | Multilabelled | Retrieved | Selected
