"""Running statistics of batch norms that do not depend on how a batch is split.

Each part of a global batch that goes through the tower together moves the running mean and variance from where they
stood before the step; afterwards they are set to the average of what the parts would have made of them, over all
processes. With one part that is plain batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.losses.ranks import Ranks
from harness.models import Towers


class RunningStatistics:
    """The buffers of all batch norms of the towers during one step at a time."""

    def __init__(self, towers: Towers, ranks: Ranks) -> None:
        self._ranks = ranks
        buffers = [buffer for norm in towers.norms for buffer in norm.buffers()]
        self._floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._counts = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._before: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._count_before: list[Tensor] = []
        self._parts = 0

    @torch.no_grad()
    def begin(self) -> None:
        """Remember where they stand."""
        self._before = [buffer.clone() for buffer in self._floats]
        self._count_before = [buffer.clone() for buffer in self._counts]
        self._sums = [torch.zeros_like(buffer) for buffer in self._floats]
        self._parts = 0

    @torch.no_grad()
    def rewind(self) -> None:
        """Set them back to where they stood: before each part of the batch, and after looking at some."""
        for buffer, before in zip(self._floats + self._counts, self._before + self._count_before, strict=True):
            buffer.copy_(before)

    @torch.no_grad()
    def keep(self) -> None:
        """Take what the part that has just gone through made of them."""
        for total, buffer in zip(self._sums, self._floats, strict=True):
            total += buffer
        self._parts += 1

    @torch.no_grad()
    def end(self) -> None:
        """Set them to the average over the parts of all processes."""
        for buffer, total in zip(self._floats, self._sums, strict=True):
            buffer.copy_(self._ranks.add(total) / (self._parts * self._ranks.size))
        for count, before in zip(self._counts, self._count_before, strict=True):
            count.copy_(before + 1)
