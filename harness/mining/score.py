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
    right = torch.empty_like(said)
    existing = existing_foreign = 0
    for first in range(mined.images.start, mined.images.stop, _ROWS):
        rows = range(first, min(first + _ROWS, mined.images.stop))
        block = truth(rows) if callable(truth) else truth[rows.start : rows.stop]
        here = (mined.rows >= rows.start) & (mined.rows < rows.stop)
        right[here] = block[mined.rows[here] - rows.start, mined.cols[here]]
        block = block & informative
        existing += int(block.sum())
        other = owner != torch.arange(rows.start, rows.stop, device=owner.device).unsqueeze(1)
        existing_foreign += int((block & other).sum())
    mined_right = int((right & said & foreign).sum())
    all_right = int((right & said).sum())
    figures = {
        "mining_precision": (mined_right, int((said & foreign).sum())),
        "mining_recall": (mined_right, existing_foreign),
        "positives_precision": (all_right, int(said.sum())),
        "positives_recall": (all_right, existing),
    }
    return {name: part / whole for name, (part, whole) in figures.items() if whole}
