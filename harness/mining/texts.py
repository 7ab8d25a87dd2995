"""Stt: how similar a caption is to the captions of an image, in the three readings of FFF's Section 4.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.mining.similarity import Pairs, Tile, counted, dots, margin, pieces, product, slices

Reduction = Literal["mean", "max", "block_mean"]

_DENSE = 1 / 512
"""Share of a tile's pairs above which one matrix product is cheaper than gathering the features of each pair."""


@dataclass(frozen=True)
class CaptionTable:
    """The captions of every image, for any number of captions per image.

    Attributes:
        order: caption indices [M], those of image 0 first.
        starts: where the captions of an image begin in `order` [N].
        counts: captions of an image [N].
    """

    order: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, owner: Tensor, images: int) -> CaptionTable:
        """The table for `owner` [M], the image of every caption."""
        counts = counted(owner, images)
        return cls(torch.argsort(owner, stable=True), counts.cumsum(0) - counts, counts)

    def expand(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All captions of a list of images [P], as (position in that list, caption), each [sum of their counts]."""
        counts = self.counts[images]
        position = torch.repeat_interleave(torch.arange(len(images), device=images.device), counts)
        within = torch.arange(len(position), device=images.device) - (counts.cumsum(0) - counts)[position]
        return position, self.order[self.starts[images][position] + within]


class TextScores:
    """Stt [N, M] of which only the wanted elements are ever computed.

    The mean over the captions a of image i of <a, j> is the product of i's mean embedding (not normalised again)
    with j, so the M x M matrix of caption similarities is never needed. Images without captions score NaN or -inf:
    no threshold lets them through.
    """

    def __init__(self, text: Tensor, owner: Tensor, table: CaptionTable, reduction: Reduction) -> None:
        self._text, self._owner, self._table, self._reduction = text, owner, table, reduction
        self.slack = margin(text)
        if reduction != "max":
            self._mean = _mean_embeddings(text, owner, table.counts)
            # A half-precision product is ten times faster than a float32 one on a GPU; the slack pays for its rounding.
            fast = text.dtype if text.is_cuda else torch.float32
            self.slack += 1.1 * torch.finfo(fast).eps
            self._left = self._mean.to(fast)

    def approximate(self, tile: Tile, pairs: Pairs) -> Tensor:
        """Scores [P] of pairs within a tile, to within `slack`."""
        rows, columns = tile
        if len(pairs.rows) <= _DENSE * len(rows) * len(columns):
            return self.exact(pairs)
        return self.dense(*slices(tile))[pairs.rows - rows.start, pairs.cols - columns.start]

    def dense(self, rows: slice, columns: slice) -> Tensor:
        """All scores of a tile, to within `slack`."""
        if self._reduction == "mean":
            return product(self._left[rows], self._text[columns])
        if self._reduction == "block_mean":
            return product(self._left[rows], self._left[self._owner[columns]])
        return self._maximum(rows, self._text[columns])

    def _maximum(self, rows: slice, right: Tensor) -> Tensor:
        """Per image of `rows` the maximum over its captions of their products with `right`."""
        counts, starts = self._table.counts[rows], self._table.starts[rows]
        best = torch.full((len(counts), len(right)), -torch.inf, device=right.device)
        for slot in range(int(counts.max())):
            having = torch.nonzero(counts > slot).squeeze(1)
            captions = self._text[self._table.order[starts[having] + slot]]
            best[having] = torch.maximum(best[having], product(captions, right))
        return best

    def exact(self, pairs: Pairs) -> Tensor:
        """Scores [P] of a list of pairs in float64."""
        if self._reduction == "mean":
            return dots(self._mean, self._text, pairs)
        if self._reduction == "block_mean":
            return dots(self._mean, self._mean, Pairs(pairs.rows, self._owner[pairs.cols]))
        position, captions = self._table.expand(pairs.rows)
        scores = dots(self._text, self._text, Pairs(captions, pairs.cols[position]))
        best = torch.full((len(pairs.rows),), -torch.inf, dtype=torch.float64, device=scores.device)
        return best.scatter_reduce_(0, position, scores, "amax")


def _mean_embeddings(text: Tensor, owner: Tensor, counts: Tensor) -> Tensor:
    """Mean of the captions of every image in float64 [N, e]; NaN for an image without captions."""
    total = torch.zeros(len(counts), text.shape[1], dtype=torch.float64, device=text.device)
    for part in pieces(len(text), text):
        total.index_add_(0, owner[part], text[part].double())
    return total / counts.unsqueeze(1)
