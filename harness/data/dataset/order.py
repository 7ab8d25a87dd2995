"""In which order samples are visited: a function of (seed, epoch) alone, so that training can go on anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.data.rng import stream


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation [samples] of one epoch."""
    return stream("epoch order", seed, epoch).permutation(samples)
