"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.base.errors import TrainingError
from harness.config.model import Train


@dataclass(frozen=True)
class Schedule:
    """The share of each group's peak learning rate at every step."""

    train: Train
    steps: int
    """Optimiser steps of the whole training."""
    warmup: int
    cooldown: int

    @classmethod
    def of(cls, train: Train, *, samples: int) -> Schedule:
        """The schedule of a training on `samples` samples.

        Raises:
            TrainingError: warm-up and cooldown are longer than training.
        """
        durations = (train.duration, train.warmup, train.cooldown)
        steps, warmup, cooldown = (
            each.steps(samples_per_epoch=samples, global_batch_size=train.global_batch_size) for each in durations
        )
        if warmup + cooldown > steps:
            what = f"warm-up ({warmup} steps) and cooldown ({cooldown}) are longer than the training ({steps})"
            raise TrainingError(what, where="train.warmup", fix="shorten them")
        return cls(train, steps, warmup, cooldown)

    def share(self, step: int) -> float:
        """The learning rate of optimiser step `step` (from 0), as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        match self.train.schedule:
            case "cosine":
                return self._ended(0.5 * (1 + math.cos(math.pi * self._done(step))))
            case "linear":
                return self._ended(1 - self._done(step))
            case "constant":
                left = self.steps - step
                return 1.0 if left > self.cooldown else self._ended(left / (self.cooldown + 1))

    def _done(self, step: int) -> float:
        return (step - self.warmup) / max(self.steps - self.warmup, 1)

    def _ended(self, share: float) -> float:
        """`share`, falling to `end_lr` in place of 0."""
        return self.train.end_lr + (1 - self.train.end_lr) * share
