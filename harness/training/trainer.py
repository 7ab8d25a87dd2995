"""The training loop. Everything random in it is a function of (seed, step or epoch, sample) alone, never of history.

So a run that is killed and goes on from a checkpoint takes exactly the steps that it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.base.errors import TrainingError
from harness.config.model import Train
from harness.losses import Objective, PairBatch
from harness.models import Towers
from harness.parallel.ranks import Ranks
from harness.training.batches import Batch, BatchSource
from harness.training.checkpoint import TrainingProgress
from harness.training.divergence import DivergenceMonitor, Spike
from harness.training.ema import Average
from harness.training.encoder import BatchEncoder, Features
from harness.training.mining_step import Miner
from harness.training.momentum import MomentumEncoder, MomentumTowers
from harness.training.optimiser import build_optimiser, parameters
from harness.training.precision import Precision
from harness.training.reduce import average_gradients
from harness.training.schedule import Schedule
from harness.training.speed import Speed
from harness.training.split import Split
from harness.training.step_timer import StepTimer, no_timer

CALIBRATION_BATCHES = 4

Logs = dict[str, float | Tensor]


@dataclass
class Student:
    """What is trained: towers, objective (with temperature and bias), their optimiser, and what belongs to them."""

    towers: Towers
    objective: Objective
    optimiser: torch.optim.AdamW
    precision: Precision
    average: Average | None
    watch: DivergenceMonitor
    momentum: MomentumTowers | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """Everything with a state that a checkpoint holds."""
        named = {
            "towers": self.towers,
            "objective": self.objective,
            "optimiser": self.optimiser,
            "precision": self.precision,
            "watch": self.watch,
        }
        optional = {"average": self.average, "momentum": self.momentum}
        return named | {name: part for name, part in optional.items() if part is not None}


def build_student(train: Train, towers: Towers, objective: Objective, *, divergence_steps: int) -> Student:
    """The student at its start. `towers` and `objective` are on their device, their locked parts locked."""
    return Student(
        towers,
        objective,
        build_optimiser(train.optimiser, towers, objective),
        Precision(train.precision, towers.device),
        None if train.ema_decay is None else Average(towers.model, train.ema_decay),
        DivergenceMonitor(divergence_steps),
        None if objective.momentum_need is None else MomentumTowers(towers, objective.momentum_need),
    )


class Step(NamedTuple):
    """One optimiser step that has been taken."""

    at: TrainingProgress
    logs: Logs
    """What it can tell; a tensor is only fetched from the device by who reads it."""
    spike: Spike | None


class Trainer:
    """Takes optimiser steps. `run` yields after each of them, so that its caller can log, evaluate, save and stop."""

    def __init__(
        self,
        train: Train,
        student: Student,
        source: BatchSource,
        miner: Miner | None,
        split: Split,
        *,
        seed: int,
        ranks: Ranks | None = None,
        clock: StepTimer = no_timer,
    ) -> None:
        self._train, self._student, self._source, self._miner = train, student, source, miner
        self._clock, self._ranks, self.split = clock, ranks or Ranks(), split
        self._schedule = Schedule.of(train, samples=source.dataset.epoch_samples)
        self._parameters = parameters(student.optimiser)
        self._state_before: list[Tensor] = []
        self._encoder = BatchEncoder(
            student.towers,
            student.precision,
            split,
            seed=seed,
            ranks=self._ranks,
            clock=clock,
            tokens=student.objective.needs_tokens,
            decoder=student.objective.needs_decoder,
        )
        self._momentum = None
        if student.momentum is not None:
            self._momentum = MomentumEncoder(student.momentum, student.precision, split, seed=seed, clock=clock)
        self.speed = Speed(source.batch_size, student.towers.device, self._ranks.size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self._schedule.steps

    def run(self, start: TrainingProgress) -> Iterator[Step]:
        """From `start` to the end, step by step.

        Raises:
            TrainingError: the loss or a gradient is not finite, and the student is as it was before that step; or the
                run has diverged.
        """
        self._student.towers.train()
        batches, duration = self.speed.counted(self._student.towers, self._source.batches(start.step)), start.duration_s
        for step in range(start.step, self.steps):
            begun = time.monotonic()
            with self._clock("data"):
                batch = next(batches)
            logs, spike = self._step(step, batch)
            taken = time.monotonic() - begun  # what the caller does between steps is not training
            self.speed.step(taken)
            duration += taken
            yield Step(TrainingProgress(step + 1, duration, start.attempt), logs, spike)

    def calibrate(self) -> None:
        """Let the objective estimate what it needs on the first batches (the sigmoid losses' bias)."""
        self._student.towers.train()
        with torch.no_grad():
            batches = zip(range(CALIBRATION_BATCHES), self._source.batches(0), strict=False)
            self._student.objective.calibrate(  # which looks at them only where it has something to estimate
                self._pairs(self._encoder.look(step, batch), batch)[0] for step, batch in batches
            )

    def _step(self, step: int, batch: Batch) -> tuple[Logs, Spike | None]:
        student = self._student
        share = self._schedule.share(step)
        for group in student.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        student.optimiser.zero_grad(set_to_none=True)
        loss, logs = self._backward(step, batch)
        with self._clock("optimiser"):
            norm = nn.utils.clip_grad_norm_(self._parameters, self._train.grad_clip or math.inf)
            value, norm_value = torch.stack([loss.double(), norm.double()]).tolist()  # the step's one wait for a GPU
            try:
                self._check_finite(value, norm_value, step, batch, logs)
                spike = student.watch(step + 1, value, batch.everyone)
            except TrainingError:
                self._undo()
                raise
            logs |= student.precision.step(student.optimiser)
            student.objective.clamp_()
            student.objective.advance()
            if student.momentum is not None:
                student.momentum.update()
            if student.average is not None:
                student.average.update()
        logs |= {"loss": value, "lr": self._train.optimiser.lr * share}
        # A scaled gradient that has overflowed has no norm; its step was left out, and loss_scale tells of it.
        return logs | ({"grad_norm": norm_value} if math.isfinite(norm_value) else {}), spike

    def _backward(self, step: int, batch: Batch) -> tuple[Tensor, Logs]:
        """Gradients of the global loss on all parameters; the loss and its terms."""
        student = self._student
        self._state_before = [buffer.clone() for buffer in student.objective.running_state]
        pairs, mined = self._pairs(self._encoder.features(step, batch), batch)
        if self._momentum is not None:
            pairs = self._momentum(step, batch, pairs)
        with self._clock("loss"):
            loss, terms = student.objective(pairs)
            student.precision.backward(loss)
        self._encoder.backward()
        with self._clock("exchange of gradients"):
            average_gradients(self._parameters, self._ranks)
        student.precision.unscale(student.optimiser)
        return loss.detach(), {**terms, **mined}

    def _pairs(self, features: Features, batch: Batch) -> tuple[PairBatch, dict[str, float]]:
        """The batch as the towers and the teacher see it, its positives mined."""
        pairs = batch.pairs(*features)
        if self._miner is None:
            return pairs, {}
        with self._clock("mining"):
            return self._miner(pairs, batch)

    def _check_finite(self, loss: float, norm: float, step: int, batch: Batch, logs: Logs) -> None:
        """Stop before an update that would spoil the weights. A scaled gradient may overflow: the scale then falls."""
        if math.isfinite(loss) and (math.isfinite(norm) or self._student.precision.scales):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        terms = [name for name, term in logs.items() if not math.isfinite(float(term))] or [what]
        samples = ", ".join(map(str, batch.everyone[:8].tolist()))
        raise TrainingError(
            f"the {what} is not finite at step {step + 1} (terms: {', '.join(terms)}; samples {samples}, ...)",
            fix="lower train.optimiser.lr, set train.grad_clip, or look at the samples; the last checkpoint is good",
        )

    def _undo(self) -> None:
        """Bring what the step has moved already, running statistics, back to where it was before."""
        self._encoder.forget()
        for buffer, before in zip(self._student.objective.running_state, self._state_before, strict=True):
            buffer.copy_(before)
