"""In which order samples are visited: a function of (seed, epoch) alone, so that training can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.rng import stream


class Batch(NamedTuple):
    """The samples of one step."""

    epoch: int
    """How often the data was gone through before; augmentation depends on it."""
    indices: NDArray[np.int64]
    """[N]"""


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation [samples] of one epoch."""
    return stream("epoch order", seed, epoch).permutation(samples)


def training_batches(samples: int, seed: int, batch_size: int, first_step: int = 0) -> Iterator[Batch]:
    """Batches without end from `first_step` on; an epoch has `samples // batch_size` of them, and drops the rest.

    Raises:
        ValueError: a batch holds more than all samples.
    """
    per_epoch = samples // batch_size
    if per_epoch == 0:
        raise ValueError(f"a batch of {batch_size} is more than the {samples} samples there are")
    epoch, step = divmod(first_step, per_epoch)
    while True:
        order = epoch_order(samples, seed, epoch)
        for start in range(step * batch_size, per_epoch * batch_size, batch_size):
            yield Batch(epoch, order[start : start + batch_size])
        epoch, step = epoch + 1, 0


def sequential_batches(samples: int, batch_size: int) -> Iterator[Batch]:
    """Every sample once, in order; the last batch may be smaller. For features and evaluation."""
    for start in range(0, samples, batch_size):
        yield Batch(0, np.arange(start, min(start + batch_size, samples)))
