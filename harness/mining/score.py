"""Mined positives against the truth, where it is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mining.positives import GROUND_TRUTH, Mined

Truth = Tensor | Callable[[range], Tensor]
"""Which captions hold for which images: a matrix [N, M] bool, or a function that gives the rows of some images."""

_ROWS = 256


def score(mined: Mined, truth: Truth, owner: Tensor, informative: Tensor) -> dict[str, float]:
    """Precision and recall of the mined pairs, and of all positives.

    `mining_precision` is the share of the mined captions of other images that hold for the image, `mining_recall`
    the share found of those that hold. `positives_precision` and `positives_recall` are the same with an image's own
    captions, so they show dropped ground truth too. A figure without pairs to be measured on is left out.

    Args:
        mined: the positives of a batch or of some of its images.
        truth: which captions hold for which images of the batch.
        owner: the image of every caption [M].
        informative: captions that say something [M] bool; the others hold for every image and count nowhere.
    """
    said = informative[mined.cols]
    foreign = mined.clause < GROUND_TRUTH
    right = torch.zeros_like(said)
    existing = existing_foreign = torch.zeros((), dtype=torch.int64, device=said.device)
    for first in range(mined.images.start, mined.images.stop, _ROWS):
        rows = range(first, min(first + _ROWS, mined.images.stop))
        block = truth(rows) if callable(truth) else truth[rows.start : rows.stop]
        here = (mined.rows >= rows.start) & (mined.rows < rows.stop)
        right |= here & block[(mined.rows - rows.start).clamp(0, len(rows) - 1), mined.cols]
        block = block & informative
        existing = existing + block.sum()
        other = owner != torch.arange(rows.start, rows.stop, device=owner.device).unsqueeze(1)
        existing_foreign = existing_foreign + (block & other).sum()
    counts = ((right & said & foreign), (right & said), (said & foreign), said)
    sums = [*(count.sum() for count in counts), existing_foreign, existing]
    mined_right, all_right, mined_all, positives, there_foreign, there = torch.stack(sums).tolist()  # the only wait
    figures = {
        "mining_precision": (mined_right, mined_all),
        "mining_recall": (mined_right, there_foreign),
        "positives_precision": (all_right, positives),
        "positives_recall": (all_right, there),
    }
    return {name: part / whole for name, (part, whole) in figures.items() if whole}
