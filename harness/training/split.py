"""How a global batch is split: over processes, then into micro-batches, with parts that have to stay together.

global batch = processes x accumulation x micro-batch. Most towers see every image and text alone, so any split gives
the same features. Towers with batch norm or dropout do not: for them the *virtual* batch is the unit that stays
together whatever the split, and the statistics and masks are those of that unit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from open_clip.transformer import PatchDropout
from torch import nn

from harness.base.errors import TrainingError
from harness.config.model import Train
from harness.models.towers import moves


@dataclass(frozen=True)
class Split:
    """One process's part of the global batch."""

    part: int
    """Images of this process."""
    micro: int
    """Images whose activations it holds at a time; divides `part`."""
    together: int | None = None
    """Images that have to go through the towers together; divides `micro`. None where any may."""

    @property
    def unit(self) -> int:
        """Images that go through the towers together."""
        return self.together or self.micro

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.part // self.micro


def is_coupled(model: nn.Module) -> str | None:
    """What makes a model's features depend on which samples stand together ("batch norm", "dropout"), or None."""
    for module in model.modules():
        match module:
            case nn.modules.batchnorm._BatchNorm() if moves(module):
                return "batch norm"
            case nn.modules.dropout._DropoutNd() if module.p > 0:
                return "dropout"
            case PatchDropout() if module.prob > 0:
                return "patch dropout"
            case _ if coupled := _is_coupled_in_timm(module):
                return coupled
            case _:
                pass
    return None


def _is_coupled_in_timm(module: Any) -> str | None:
    """As `is_coupled`, for a layer of timm's. If timm is not imported, no module is one: its import takes a second."""
    layers = sys.modules.get("timm.layers")
    if layers is None:
        return None
    if isinstance(module, (layers.PatchDropout, layers.PatchDropoutWithIndices)) and module.prob > 0:
        return "patch dropout"
    return "stochastic depth" if isinstance(module, layers.DropPath) and module.drop_prob else None


def split_batch(train: Train, *, processes: int, micro: int | None, coupled: str | None) -> Split:
    """The split of the global batch.

    Args:
        train: the recipe.
        processes: that share the batch.
        micro: images of a micro-batch; None takes a process's whole part at once.
        coupled: what keeps samples together (`is_coupled`).

    Raises:
        TrainingError: the batch cannot be split so.
    """
    whole = train.global_batch_size
    if whole % processes:
        fix = f"use {_nearest_divisor(whole, processes)} processes, or another batch size"
        raise TrainingError(
            f"{processes} processes cannot share a batch of {whole}", where="resources.processes", fix=fix
        )
    part = whole // processes
    micro = part if micro is None else min(micro, part)
    if part % micro:
        fix = f"use {_nearest_divisor(part, micro)}"
        what = f"micro-batches of {micro} do not divide the {part} images of a process"
        raise TrainingError(what, where="resources.micro_batch_size", fix=fix)
    together = (train.virtual_batch_size or whole) if coupled else None
    if micro % (together or 1):
        what = f"{coupled} holds {together} images together, but a process takes {micro} at a time"
        fix = f"set train.virtual_batch_size to a divisor of {micro} (another run), or do not split the batch"
        raise TrainingError(what, where="train.virtual_batch_size", fix=fix)
    return Split(part, micro, together)


def smaller(split: Split) -> Split | None:
    """The next smaller micro-batch that divides the part and keeps units together; None where there is none."""
    for size in range(split.micro // 2, 0, -1):
        if split.part % size == 0 and size % (split.together or 1) == 0:
            return Split(split.part, size, split.together)
    return None


def _nearest_divisor(number: int, wanted: int) -> int:
    return max(size for size in range(1, wanted + 1) if number % size == 0)
