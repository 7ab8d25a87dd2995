"""Losses in Python files of the user's own."""

from __future__ import annotations

from harness.config.loss import PythonLoss
from harness.losses.base import Objective, objectives
from harness.losses.chunks import ChunkPass

__all__ = ["own_objective"]


@objectives.register(PythonLoss)
def own_objective(spec: PythonLoss, sweep: ChunkPass) -> Objective:
    """The objective of the class that `spec` names.

    Raises:
        SpecError: its file cannot be imported, or it refuses its parameters.
    """
    objective: Objective = spec.built(sweep)
    return objective
