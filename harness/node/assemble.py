"""From a request to what trains: teacher features, batches, objective, optimiser, the split of the batch, trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.base.log import say
from harness.data.dataset.dataset import Dataset
from harness.losses import build_objective
from harness.losses.base import Objective
from harness.models import Towers, embedding_width
from harness.models.fitting import fit_out
from harness.node.teacher_features import features_for
from harness.parallel.process_group import World
from harness.runs.request import Request
from harness.training import Student, Trainer, build_student
from harness.training.batches import Batch, BatchSource
from harness.training.memory import largest_that_fits, reserve
from harness.training.micro_batch_probe import try_step
from harness.training.mining_step import Miner, build_miner
from harness.training.optimiser import lock_towers, parameters
from harness.training.split import Split, is_coupled, split_batch
from harness.training.step_timer import StepTimer, no_timer


@dataclass(frozen=True)
class Assembler:
    """What a training is built from; `towers` are on the device that trains."""

    request: Request
    dataset: Dataset
    fingerprint: str
    towers: Towers
    world: World
    clock: StepTimer = no_timer

    def build(self) -> tuple[Trainer, Student]:
        """The trainer and what it trains.

        Raises:
            HarnessError: model, data, teacher or the split of the batch cannot be had as the spec says.
        """
        experiment, ranks = self.request.experiment, self.world.ranks
        lock_towers(self.towers, experiment.train.lock)
        if experiment.loss.needs_decoder:
            self.towers.require_decoder()
        if experiment.loss.masked_share is not None:
            self.towers.require_words()
        fit_out(self.towers, experiment.resources)
        split = self._split()  # before the teacher, which may take long
        features = features_for(self.request, self.dataset, self.fingerprint, self.towers.device)
        source = BatchSource(experiment, self.dataset, self.towers, features, ranks)
        width = embedding_width(experiment.model)
        objective = build_objective(experiment.loss, ranks, width=width, seed=experiment.seed).to(self.towers.device)
        if experiment.model.temperature == "weights":
            self._start_at_weights(objective)
        student = build_student(
            experiment.train, self.towers, objective, divergence_steps=experiment.resources.divergence_steps
        )
        miner = build_miner(experiment.mining, source, experiment.captions, ranks)
        if experiment.resources.micro_batch_size == "auto" and self.towers.device.type == "cuda":
            split = self._fitting(split, student, source.blank(), miner)
        trainer = Trainer(
            experiment.train, student, source, miner, split, seed=experiment.seed, ranks=ranks, clock=self.clock
        )
        experiment.loss.check_training(len(self.dataset), trainer.steps * experiment.train.global_batch_size)
        return trainer, student

    def _start_at_weights(self, objective: Objective) -> None:
        """Start temperature and bias where the weights left them, and say where that is."""
        scale, bias = self.towers.learned
        assert scale is not None
        objective.start_at(scale, bias)
        if self.world.is_first:
            has_bias = hasattr(objective, "bias")
            began = objective.log_scale.exp().item()
            starts = f"logit_scale {began:.6g}" + (f" ({scale:.6g} clamped)" if began < scale * (1 - 1e-6) else "")
            starts += f", logit_bias {bias:.6g}" if bias is not None and has_bias else ""
            lacks = "; they hold no bias: it starts as loss.logit_bias says" if bias is None and has_bias else ""
            left = "; their bias is not used: the loss has none" if bias is not None and not has_bias else ""
            say(f"started at the weights' {starts}{lacks}{left}")

    def _split(self) -> Split:
        asked = self.request.experiment.resources.micro_batch_size
        micro = None if asked == "auto" else asked
        coupled = is_coupled(self.towers.model)
        processes = self.world.ranks.size
        return split_batch(self.request.experiment.train, processes=processes, micro=micro, coupled=coupled)

    def _fitting(self, split: Split, student: Student, batch: Batch, miner: Miner | None) -> Split:
        """The largest micro-batch that fits into the GPU's memory beside gradients and the optimiser's state."""
        held, ranks = reserve(parameters(student.optimiser)), self.world.ranks
        found = largest_that_fits(
            split, lambda one: try_step(student, batch, one, miner, ranks.size), ranks, self.towers.device
        )
        del held
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.towers.device)
        if found.micro < split.micro and self.world.is_first:
            say(
                f"{split.part} images do not fit into memory at once; continuing with micro-batches of "
                f"{found.micro}, {found.accumulation} for each step. The result is the same."
            )
        return found
