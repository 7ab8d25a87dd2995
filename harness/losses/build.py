"""From a loss spec to the module that computes it."""

from __future__ import annotations

import torch

from harness.config.loss import LossSpec, SumLoss
from harness.losses import (  # noqa: F401 - each registers its losses
    decoder,
    gated,
    geometry,
    momentum,
    mp_nce,
    own,
    prototypes,
    sigmoid,
    softmax,
    teacher,
    terms,
    tokens,
    views,
)
from harness.losses.base import Objective, objectives
from harness.losses.chunks import ChunkPass
from harness.parallel.ranks import Ranks

__all__ = ["build_objective"]


def build_objective(
    spec: LossSpec | SumLoss, ranks: Ranks | None = None, chunk: int | None = None, *, width: int = 1, seed: int = 0
) -> Objective:
    """The objective that `spec` describes.

    Args:
        spec: one of the losses.
        ranks: the processes that share a batch; a single one if left out.
        chunk: captions per strip of scores; by a memory budget if left out. It never changes the result.
        width: of the features, for losses with projection heads or queues.
        seed: of the heads' initialisation.

    Raises:
        SpecError: no objective is registered for a loss of this kind.
    """
    objective = objectives(spec, ChunkPass(ranks or Ranks(), chunk))
    objective.build_heads(width, torch.Generator().manual_seed(seed))
    return objective
