"""The ideal miner, where the truth is known: the captions of other images that are true of an image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.config.mining import TruthMining
from harness.mining.placebo import DRAWN
from harness.mining.positives import GROUND_TRUTH, Mined

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class TruthRule:
    """Positives by the truth, with a stated precision and at most so many for each image."""

    def __init__(self, spec: TruthMining) -> None:
        self._spec = spec

    def mine(self, true: Mask, told: Mask, owner: Tensor, images: range, batch: int) -> Mined:
        """The positives of `images`: their own captions, and those that are added.

        As many captions are added as are true of the image, at most `most`. Of n, n (1 - precision) are replaced by
        false ones (as many as there are), rounded up or down at random so that the expectation is exact.

        Args:
            true: which captions are true of which images of the batch [N, M].
            told: which captions say anything [M].
            owner: the image of every caption of the batch [M].
            images: the images to mine for, counted in the whole batch.
            batch: a number of the batch, which the draws depend on beside the image's place.
        """
        owners: Ints = owner.cpu().numpy()
        rows: list[Ints] = []
        for row in images:
            draw = np.random.default_rng([batch, row])
            others = told & (owners != row)
            right, wrong = (draw.permutation(np.flatnonzero(others & one)) for one in (true[row], ~true[row]))
            count = len(right) if self._spec.most is None else min(self._spec.most, len(right))
            replaced = min(int(count * (1 - self._spec.precision) + draw.random()), len(wrong))
            rows.append(np.concatenate([right[: count - replaced], wrong[:replaced], np.flatnonzero(owners == row)]))
        cols = np.concatenate([np.sort(one) for one in rows])
        found = np.repeat(np.asarray(images, dtype=np.int64), [len(one) for one in rows])
        own = owners[cols] == found
        clause = torch.from_numpy(np.where(own, GROUND_TRUTH, DRAWN).astype(np.uint8)).to(owner.device)
        rows_there, cols_there = (torch.from_numpy(one).to(owner.device) for one in (found, cols))
        return Mined(rows_there, cols_there, clause, images, int(own.sum()))
