"""In which order samples are visited: a function of (seed, epoch) alone, so that training can go on anywhere.

Each source of a mixture is visited in passes: a new random order of all its samples each time. An epoch takes the next
samples of each source, as many as its share says to within one sample, and shuffles them together. So the samples of a
source are visited equally often to within one, and training can go on from any step.

In debiased batches (ZeroVL) the same holds for batches instead of samples: an epoch takes the next batches of each
source and shuffles the batches.
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
    visits = [_shuffled(number, size, one, seed) for one in passes]
    first = passes.start * size
    return np.concatenate(visits)[wanted.start - first : wanted.stop - first]


def _shuffled(number: int, size: int, one: int, seed: int) -> NDArray[np.int64]:
    """The random order of a source's pass `one` over its `size` samples."""
    return stream("pass over a source", seed, number, one).permutation(size)


def debiased_order(proportions: Proportions, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples of an epoch whose batches are of one source each [whole batches of an epoch x `batch_size`].

    A source has at least two batches of samples. No sample is twice in a batch.
    """
    offsets = [0, *accumulate(proportions.sizes)]
    batches = proportions._replace(epoch=proportions.epoch // batch_size)
    visits = zip(batches.visited(epoch), batches.visited(epoch + 1), strict=True)
    parts = [
        offsets[number] + _batches(number, proportions.sizes[number], range(*ends), batch_size, seed)
        for number, ends in enumerate(visits)
    ]
    order: NDArray[np.int64] = stream("order of batches", seed, epoch).permutation(np.concatenate(parts))
    return order.reshape(-1)


def _batches(number: int, size: int, wanted: range, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Some of a source's batches [batches, `batch_size`]: its passes, one after the other, are cut into batches."""
    first, last = wanted.start * batch_size, wanted.stop * batch_size
    passes = range(first // size, -(-last // size))
    visits = [np.empty(0, dtype=np.int64), *(_pass(number, size, one, batch_size, seed) for one in passes)]
    start = first - passes.start * size
    batches: NDArray[np.int64] = np.concatenate(visits)[start : start + last - first].reshape(-1, batch_size)
    return batches


def _pass(number: int, size: int, one: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """The order of a source's pass `one`, whose first samples are none of those that begin their batch.

    The batch that two passes share begins with the last `carried` samples of the earlier pass. Where the later pass
    begins with one of these, that one changes places with the first other one behind. With two batches of samples,
    these lie before the pass's last `batch_size`, which stay: so an order depends on the shuffle before alone.
    """
    order = _shuffled(number, size, one, seed)
    carried = one * size % batch_size
    if not carried:
        return order
    before = _shuffled(number, size, one - 1, seed)[-carried:]
    is_before = np.isin(order, before)
    begun = batch_size - carried
    again = np.flatnonzero(is_before[:begun])
    free = begun + np.flatnonzero(~is_before[begun:])[: len(again)]
    order[again], order[free] = order[free], order[again]
    return order
