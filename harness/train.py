"""The training loop. Everything random in it is a function of (seed, step or epoch, sample) alone, never of history.

So a run that is killed and goes on from a checkpoint takes exactly the steps that it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.batches import Batch, BatchSource
from harness.checkpoint import Progress
from harness.errors import TrainingError
from harness.losses import Objective, PairBatch
from harness.miner import Miner
from harness.models import Towers
from harness.spec.model import Optimiser, Train

CALIBRATION_BATCHES = 4


@dataclass
class Student:
    """What is trained: towers, objective (with temperature and bias), and their optimiser."""

    towers: Towers
    objective: Objective
    optimiser: torch.optim.AdamW
    device: torch.device

    @property
    def encoders(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """What makes features of images and of texts: of their tokens too, where the objective compares these.

        Raises:
            ModelError: the towers give no token features.
        """
        if not self.objective.needs_tokens:
            return self.towers.encode_image, self.towers.encode_text
        self.towers.require_tokens()
        return self.towers.encode_image_tokens, self.towers.encode_text_tokens

    @property
    def parts(self) -> dict[str, Any]:
        """Everything with a state that a checkpoint holds."""
        return {"towers": self.towers, "objective": self.objective, "optimiser": self.optimiser}


def build_optimiser(spec: Optimiser, modules: list[nn.Module]) -> torch.optim.AdamW:
    """AdamW over all parameters that are trained; weight decay on those with two or more dimensions."""
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def learning_rate(train: Train, step: int, steps: int, warmup: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `steps`."""
    if step < warmup:
        return train.optimiser.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    match train.schedule:
        case "constant":
            return train.optimiser.lr
        case "linear":
            return train.optimiser.lr * (1 - done)
        case "cosine":
            return train.optimiser.lr * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """Takes optimiser steps. `run` yields after each of them, so that its caller can log, evaluate, save and stop."""

    def __init__(self, train: Train, student: Student, source: BatchSource, miner: Miner | None, *, seed: int) -> None:
        self._train, self._student, self._source, self._miner = train, student, source, miner
        self._seed = seed
        self._encode_image, self._encode_text = student.encoders
        self.steps = train.duration.steps(samples_per_epoch=len(source.dataset), global_batch_size=source.batch_size)
        self._warmup = train.warmup.steps(samples_per_epoch=len(source.dataset), global_batch_size=source.batch_size)

    def run(self, start: Progress) -> Iterator[tuple[Progress, dict[str, float]]]:
        """From `start` to the end: after each step where training is, and the step's metrics.

        Raises:
            TrainingError: the loss or a gradient is not finite; the model is as it was before that step.
        """
        self._student.towers.train()
        batches, duration = self._source.batches(start.step), start.duration_s
        for step in range(start.step, self.steps):
            begun = time.monotonic()
            logs = self._step(step, next(batches))
            duration += time.monotonic() - begun  # what the caller does between steps is not training
            yield Progress(step + 1, duration, start.attempt), logs

    def calibrate(self) -> None:
        """Let the objective estimate what it needs on the first batches (the sigmoid losses' bias)."""
        towers = self._student.towers
        buffers = {name: buffer.clone() for name, buffer in towers.named_buffers()}
        towers.train()
        with torch.no_grad():
            batches = zip(range(CALIBRATION_BATCHES), self._source.batches(0), strict=False)
            self._student.objective.calibrate([self._pairs(step, batch)[0] for step, batch in batches])
            for name, buffer in towers.named_buffers():  # looking must not move the running means
                buffer.copy_(buffers[name])

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        student, train = self._student, self._train
        rate = learning_rate(train, step, self.steps, self._warmup)
        for group in student.optimiser.param_groups:
            group["lr"] = rate
        pairs, mined = self._pairs(step, batch)
        loss, terms = student.objective(pairs)
        logs = {"loss": loss.detach(), **terms, **mined}
        self._refuse_non_finite("loss", loss.detach(), step, batch, logs)
        student.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters(), train.grad_clip or math.inf)
        self._refuse_non_finite("gradient", norm, step, batch, logs)
        student.optimiser.step()
        student.objective.clamp_()
        return {name: float(value) for name, value in logs.items()} | {"lr": rate, "grad_norm": float(norm)}

    def _pairs(self, step: int, batch: Batch) -> tuple[PairBatch, dict[str, float]]:
        """The batch as the towers and the teacher see it, its positives mined."""
        student = self._student
        torch.manual_seed((self._seed << 32) + step)  # dropout and its kin
        with torch.autocast(student.device.type, torch.bfloat16, enabled=self._train.precision == "bfloat16"):
            image = self._encode_image(batch.images.to(student.device, non_blocking=True))
            text = self._encode_text(batch.tokens.to(student.device, non_blocking=True))
        pairs = batch.pairs(image, text)
        return self._miner(pairs, batch) if self._miner else (pairs, {})

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._student.optimiser.param_groups for parameter in group["params"]]

    def _refuse_non_finite(self, what: str, value: Tensor, step: int, batch: Batch, logs: dict[str, Any]) -> None:
        if bool(torch.isfinite(value)):
            return
        terms = [name for name, term in logs.items() if not math.isfinite(float(term))] or [what]
        samples = ", ".join(map(str, batch.samples[:8].tolist()))
        raise TrainingError(
            f"the {what} is not finite at step {step} (terms: {', '.join(terms)}; samples {samples}, ...)",
            fix="lower train.optimiser.lr, set train.grad_clip, or look at the samples; the last checkpoint is good",
        )
