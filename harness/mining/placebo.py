"""A control for mining: the same number of positives for each image, drawn at random."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.mining.positives import GROUND_TRUTH, Mined

DRAWN = 0
"""`Mined.clause` of a pair that was drawn: no clause found it."""


def redrawn(mined: Mined, image: Tensor, owner: Tensor) -> Mined:
    """`mined` with each caption of another image replaced by one drawn among all such captions of the batch.

    An image keeps its number of positives; none is drawn twice. The draw is a function of the batch, known by its
    features, and of the image's place in it, so each rank draws for its own images what one process would.

    Args:
        mined: the positives of all or some of the batch's images.
        image: the teacher's image features of the whole batch [N, e].
        owner: the image of every caption of the batch [M].
    """
    batch = zlib.crc32(image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    own = mined.clause >= GROUND_TRUTH
    counts = torch.bincount(mined.rows[~own], minlength=len(image)).tolist()
    owners: npt.NDArray[np.int64] = owner.cpu().numpy()
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(len(image) + 1))
    rows, cols = [mined.rows[own]], [mined.cols[own]]
    for row in (one for one in mined.images if counts[one]):
        excluded = order[starts[row] : starts[row + 1]]  # ascending: the sort is stable
        drawn = np.random.default_rng([batch, row]).choice(len(owners) - len(excluded), counts[row], replace=False)
        for caption in excluded:
            drawn[drawn >= caption] += 1
        rows.append(torch.full((counts[row],), row, dtype=mined.rows.dtype, device=mined.rows.device))
        cols.append(torch.from_numpy(drawn).to(mined.cols))
    all_rows, all_cols = torch.cat(rows), torch.cat(cols)
    clause = torch.cat([mined.clause[own], torch.full_like(all_rows[int(own.sum()) :], DRAWN, dtype=torch.uint8)])
    place = torch.argsort(all_rows * len(owners) + all_cols)
    return replace(mined, rows=all_rows[place], cols=all_cols[place], clause=clause[place])
