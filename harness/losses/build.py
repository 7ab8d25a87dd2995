"""From a loss spec to the module that computes it."""

from __future__ import annotations

from harness.losses.base import Objective
from harness.losses.chunked import Sweep
from harness.losses.ranks import Ranks
from harness.losses.sigmoid import MultiPositiveSigmoidObjective, SigmoidObjective
from harness.losses.softmax import InfoNCEObjective
from harness.spec import loss as specs

__all__ = ["build_objective"]


def build_objective(spec: specs.Loss, ranks: Ranks | None = None, chunk: int | None = None) -> Objective:
    """The objective that `spec` describes.

    Args:
        spec: one of the losses.
        ranks: the processes that share a batch; a single one if left out.
        chunk: captions per strip of scores; by a memory budget if left out. It never changes the result.
    """
    sweep = Sweep(ranks or Ranks(), chunk)
    match spec:
        case specs.InfoNCE():
            return InfoNCEObjective(spec, sweep)
        case specs.Sigmoid():
            return SigmoidObjective(spec, sweep)
        case specs.MultiPositiveSigmoid():
            return MultiPositiveSigmoidObjective(spec, sweep)
