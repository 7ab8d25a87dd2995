"""A run before it has a folder: what it is, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.experiment import Experiment
from harness.runs.identity import Identity


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan."""

    identity: Identity
    experiment: Experiment
    """With the seed of this run."""
    role: str
    """`arm`, or `teacher` where only other runs need it."""
    teacher: str | None
    """Id of the run whose checkpoint teaches this one: it has to be done first."""
    steps: int
    """Optimiser steps that it will take; 0 where its data is missing."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.identity.id
