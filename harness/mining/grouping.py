"""GRIT-VLP's grouped mini-batches (Byun et al., ECCV 2022): an epoch's order with similar samples together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.base.errors import SpecError
from harness.mining.similarity import product


def grouped_order(
    image: Tensor, text: Tensor, *, batch_size: int, search_space: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """The order of an epoch in which consecutive batches hold similar samples. [S] int64, a permutation.

    The four phases of GRIT-VLP on constant features: shuffle the samples, cut them into search spaces, order each by
    a greedy walk, shuffle the batches cut from the result. A last partial batch stays last. The order depends on the
    features, the sizes, `seed` and `epoch` alone.

    Args:
        image: the teacher's image features, unit rows [S, e].
        text: one text feature per image, unit rows [S, e].
        batch_size: samples of a batch, over all ranks.
        search_space: samples among which similar ones are sought, a multiple of `batch_size`.
        seed: of the run.
        epoch: counted from 0.

    Raises:
        SpecError: `search_space` is no multiple of `batch_size`.
    """
    if search_space % batch_size:
        raise SpecError(
            f"search_space {search_space} is not a multiple of the global batch size {batch_size}",
            where="train.batches",
            fix=f"use {max(1, search_space // batch_size) * batch_size}",
        )
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(image))
    spaces = [shuffled[first : first + search_space] for first in range(0, len(shuffled), search_space)]
    order = np.concatenate([space[_walk(image, text, space, random)] for space in spaces])
    whole = len(order) // batch_size * batch_size
    batches = order[:whole].reshape(-1, batch_size)[random.permutation(whole // batch_size)]
    return np.concatenate([batches.reshape(-1), order[whole:]])


def _walk(
    image: Tensor, text: Tensor, space: npt.NDArray[np.int64], random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions in `space`: from an image to the nearest text not yet taken, from that sample's text to the nearest
    image, and so on.
    """
    chosen = torch.from_numpy(space).to(image.device)
    scores = product(image[chosen], text[chosen])
    from_image, from_text = scores.cpu().numpy(), scores.T.contiguous().cpu().numpy()
    taken = np.zeros(len(space), dtype=np.float32)
    order = np.empty(len(space), dtype=np.int64)
    order[0] = random.integers(len(space))
    for step in range(1, len(space)):
        taken[order[step - 1]] = -np.inf
        row = (from_image if step % 2 else from_text)[order[step - 1]]
        order[step] = np.argmax(row + taken)
    return order
