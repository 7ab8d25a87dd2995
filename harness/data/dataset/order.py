"""In which order samples are visited: a function of (seed, epoch) alone, so that training can go on anywhere.

Each source of a mixture is visited in passes: a new random order of all its samples each time. An epoch takes the next
samples of each source, as many as its share says to within one sample, and shuffles them together. So the samples of a
source are visited equally often to within one, and training can go on from any step.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from harness.data.proportions import Proportions
from harness.data.rng import stream


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation [samples] of one epoch."""
    return stream("epoch order", seed, epoch).permutation(samples)


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
