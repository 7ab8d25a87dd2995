"""How often each source of a mixture is visited. Imports nothing heavy: plans need it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from harness.base.errors import DataError


class Proportions(NamedTuple):
    """How often each source of a mixture is visited."""

    sizes: tuple[int, ...]
    """Samples of each source."""
    shares: tuple[Fraction, ...]
    """Of the images of an epoch; their sum is 1."""
    epoch: int
    """Images in an epoch."""

    @classmethod
    def of(cls, sizes: Sequence[int], weights: Sequence[float | None]) -> Proportions:
        """The proportions of sources of these sizes; weights are all stated, or all None.

        Raises:
            DataError: a source has less than two images in an epoch.
        """
        parts = [
            Fraction(size) if weight is None else Fraction(weight) for size, weight in zip(sizes, weights, strict=True)
        ]
        shares = tuple(part / sum(parts) for part in parts)
        epoch = min(int(size / share) for size, share in zip(sizes, shares, strict=True))
        if min(shares) * epoch < 2:
            what = f"a source has {float(min(shares) * epoch):.2g} of the {epoch:,} images of an epoch"
            fix = "raise its weight, or add samples to the smallest source"
            raise DataError(what, where="data.sources", fix=fix)
        return cls(tuple(sizes), shares, epoch)

    def visited(self, epochs: int) -> tuple[int, ...]:
        """Images of each source in the first `epochs` epochs: its share to within one image."""
        whole = epochs * self.epoch
        ends = [int(end * whole) for end in accumulate(self.shares)]
        return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))
