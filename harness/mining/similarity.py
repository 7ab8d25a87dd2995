"""Exact comparisons of inner products with a threshold, tile by tile: never more than one tile of scores at once.

Scores come from matrix products with float32 accumulators. The few that lie within the rounding error of the
threshold are computed again in float64, so that a decision depends on the features alone: not on the tile size, the
device, the number of ranks or the format the features are stored in.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isqrt
from typing import NamedTuple

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_OPERAND_ROUNDING = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}
"""What PyTorch's float32 matmul precision may cost: none, TF32 or bfloat16 operands."""


class Pairs(NamedTuple):
    """A list of pairs: rows [P] and columns [P], int64."""

    rows: Tensor
    cols: Tensor

    def select(self, mask: Tensor) -> Pairs:
        """Those where `mask` [P] holds."""
        kept = torch.nonzero(mask).squeeze(1)
        return Pairs(self.rows[kept], self.cols[kept])


Exact = Callable[[Pairs], Tensor]
"""Scores [P] of a list of pairs in float64."""


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left` [A, e] @ `right` [B, e].T in float32 accumulators, whatever the format of the features."""
    if left.is_cuda and left.dtype == right.dtype and left.dtype in _HALF:
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left.float() @ right.float().T


def margin(features: Tensor) -> float:
    """Bound on the error of a `product` of unit vectors [., e]: of its e-fold sum (Higham 2002, Section 3.1) and of
    rounding the operands.
    """
    rounding = 0.0 if features.dtype in _HALF else _OPERAND_ROUNDING[torch.get_float32_matmul_precision()]
    return (features.shape[1] + 4) * 2.0**-24 + rounding


def dots(left: Tensor, right: Tensor, pairs: Pairs) -> Tensor:
    """<left[row], right[column]> for each pair, in float64 and in pieces of bounded memory. [P]."""
    scores = torch.empty(len(pairs.rows), dtype=torch.float64, device=left.device)
    for piece in pieces(len(scores), left):
        scores[piece] = (left[pairs.rows[piece]].double() * right[pairs.cols[piece]].double()).sum(1)
    return scores


def pieces(count: int, features: Tensor) -> list[slice]:
    """`count` rows as wide as `features` cut into pieces of bounded memory, 8 MB in float64 (a GPU's: 32 MB)."""
    step = max(1, 2 ** (22 if features.is_cuda else 20) // features.shape[1])
    return [slice(first, first + step) for first in range(0, count, step)]


def passing(scores: Tensor, threshold: float, slack: float, pairs: Pairs, exact: Exact) -> Tensor:
    """Which pairs lie above the threshold, exactly. [P] bool.

    `slack` bounds the error of `scores` [P]; pairs nearer than that to the threshold are scored again by `exact`.
    """
    above = scores > threshold
    close = torch.nonzero((scores - threshold).abs() <= slack).squeeze(1)
    if len(close):
        above[close] = exact(Pairs(pairs.rows[close], pairs.cols[close])) > threshold
    return above


Tile = tuple[range, range]
"""Rows and columns of a rectangle of scores."""


def candidates(scores: Tensor, level: float, tile: Tile) -> tuple[Pairs, Tensor]:
    """The pairs of a tile whose score is above `level`, counted in the batch, and their scores [P]."""
    rows, columns = torch.nonzero(scores > level, as_tuple=True)
    return Pairs(rows + tile[0].start, columns + tile[1].start), scores[rows, columns]


def tiles(rows: range, columns: range, elements: int) -> list[Tile]:
    """`rows` x `columns` cut into tiles, as square as can be, of at most `elements` scores each."""
    # A tile of h x w scores reads h + w rows of features for h w products: for a given memory, a square reads least.
    # First h is the side of a square, or all rows if there are fewer; then w takes what is left of the budget; then h
    # grows again where there are so few columns that w could not use its share.
    high = min(len(rows), isqrt(elements))
    wide = min(len(columns), elements // max(1, high))
    high = min(len(rows), elements // max(1, wide))
    return [(row, column) for row in _cut(rows, high) for column in _cut(columns, wide)]


def slices(tile: Tile) -> tuple[slice, slice]:
    """A tile as slices of the rows of its two operands."""
    return slice(tile[0].start, tile[0].stop), slice(tile[1].start, tile[1].stop)


def _cut(whole: range, step: int) -> list[range]:
    """`whole` in equal parts of at most `step`."""
    if not whole:
        return []
    step = ceil(len(whole) / ceil(len(whole) / step))
    return [range(first, min(first + step, whole.stop)) for first in range(whole.start, whole.stop, step)]


def counted(numbers: Tensor, size: int) -> Tensor:
    """How often each of 0 to size - 1 is among `numbers` [P] int64, as [size]: `torch.bincount`, less its wait."""
    return numbers.new_zeros(size).index_add_(0, numbers, torch.ones_like(numbers))
