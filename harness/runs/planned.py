"""A run of a plan: its identity, its experiment, and its number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.experiment import Experiment
from harness.runs.identity import Identity


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan."""

    identity: Identity
    experiment: Experiment
    """The experiment with this run's seed."""
    role: str
    """`arm`, or `teacher` if only other runs need it."""
    teacher: str | None
    """Id of the run whose checkpoint is this run's teacher, which must be done first."""
    steps: int
    """Number of optimiser steps; 0 if its data is missing."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.identity.id
