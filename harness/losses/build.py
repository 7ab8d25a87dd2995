"""From a loss spec to the module that computes it."""

from __future__ import annotations

from harness.config.loss import LossSpec
from harness.losses import gated, geometry, own, sigmoid, softmax, teacher, tokens  # noqa: F401 - each registers its losses
from harness.losses.base import Objective, objectives
from harness.losses.chunks import ChunkPass
from harness.parallel.ranks import Ranks

__all__ = ["build_objective"]


def build_objective(spec: LossSpec, ranks: Ranks | None = None, chunk: int | None = None) -> Objective:
    """The objective that `spec` describes.

    Args:
        spec: one of the losses.
        ranks: the processes that share a batch; a single one if left out.
        chunk: captions per strip of scores; by a memory budget if left out. It never changes the result.

    Raises:
        SpecError: no objective is registered for a loss of this kind.
    """
    return objectives(spec, ChunkPass(ranks or Ranks(), chunk))
