"""Running statistics of batch norms that do not depend on how a batch is split.

Each part of a global batch that goes through the tower together moves the running mean and variance from where they
stood before the step; afterwards they are set to the average of what the parts would have made of them, over all
processes. With one part that is plain batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.models import Towers
from harness.parallel.ranks import Ranks


class RunningStatistics:
    """The buffers of all batch norms of the towers during one step at a time."""

    def __init__(self, towers: Towers, ranks: Ranks) -> None:
        self._norms, self._ranks = towers.norms, ranks
        self._before: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._parts = 0

    def begin(self) -> None:
        """Remember where they stand."""
        self._before = [buffer.clone() for buffer in self._buffers()]
        self._sums = [torch.zeros_like(buffer) for buffer in self._before]
        self._parts = 0

    def rewind(self) -> None:
        """Set them back to where they stood: before each part of the batch, and after looking at some."""
        self._set([before.clone() for before in self._before])

    def keep(self) -> None:
        """Take what the part that has just gone through made of them."""
        for total, buffer in zip(self._sums, self._buffers(), strict=True):
            total += buffer
        self._parts += 1

    def end(self) -> None:
        """Set them to the average over the parts of all processes; the count of steps is alike in all parts."""
        parts = self._parts * self._ranks.size
        sums = [self._ranks.all_reduce_sum(total) for total in self._sums]
        self._set([total / parts if total.is_floating_point() else total // parts for total in sums])

    def _buffers(self) -> list[Tensor]:
        return [buffer for norm in self._norms for buffer in norm.buffers()]

    def _set(self, values: list[Tensor]) -> None:
        """New tensors in the place of the old ones, which a backward pass may still need."""
        left = iter(values)
        for norm in self._norms:
            for name, _ in list(norm.named_buffers()):
                norm.register_buffer(name, next(left))
