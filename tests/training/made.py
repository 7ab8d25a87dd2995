"""Trainers of small runs in float64, built as a worker builds them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from harness.config.experiment import Experiment
from harness.node.attempt import AttemptRunner, load_request
from harness.parallel.process_group import World
from harness.parallel.ranks import Ranks
from harness.training import Student, Trainer
from harness.training.checkpoint import TrainingProgress
from tests.node.small import CONFIG, experiment, planned, prepared, project

BATCH = 16
VIT: dict[str, Any] = {
    **CONFIG,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
}
VIT_MODEL: dict[str, Any] = {"name": "small-vit", "config": VIT}
_TEXT: dict[str, Any] = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
COCA: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": VIT["vision_cfg"]
    | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": _TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": _TEXT,
    "custom_text": True,
}
COCA_MODEL: dict[str, Any] = {"name": "small-coca", "config": COCA}
ALL = {"source": "captioner", "count": 2, "mixing": "all"}
MINING = {"kind": "threshold", "image_text": {"quantile": 0.9}, "image_image": {"quantile": 0.95}}
FFF: dict[str, Any] = {"captions": ALL, "loss": {"kind": "multi_positive_sigmoid"}, "mining": MINING}
PROTOCLIP: dict[str, Any] = {
    "kind": "protoclip",
    "terms": {"1": {"prototypes": 5, "episode": 24, "hidden": 8, "width": 4}},
}
"""An episode ends in the midst of the second step."""
RESOURCES = {"log_every": 1}


def train(steps: int = 3, **fields: Any) -> dict[str, Any]:
    """A recipe of a few steps."""
    return {"duration": f"{steps} steps", "global_batch_size": BATCH, "optimiser": {"lr": 1e-2}} | fields


def attempt(root: Path, one: Experiment, ranks: Ranks | None = None) -> tuple[AttemptRunner, Trainer, Student]:
    """The attempt at a run in float64, and what it has built.

    Its teacher has the student's spec, so that nothing has to be trained for it: features are those of random weights.
    """
    plan, run = planned(root, one)
    if run.teacher is not None:
        untrained_teacher(root, plan.runs[run.teacher])
    folder = prepared(root, run)
    made = AttemptRunner(folder, load_request(folder), 1, threading.Event(), World(ranks or Ranks()))
    made.towers.double()
    trainer, student = made.build()
    student.objective.double()
    return made, trainer, student


def untrained_teacher(root: Path, run: Any) -> None:
    from harness.models import build_towers
    from harness.training.checkpoint import save_weights

    folder = project(root).store.run(run.id)
    if not folder.weights.exists():
        save_weights(folder.weights, build_towers(run.experiment.model, seed=1).model)


def taken(trainer: Trainer, student: Student, steps: int) -> list[dict[str, float]]:
    """The logs of the first steps from the beginning."""
    trainer.calibrate()
    logs = []
    for _, step in zip(range(steps), trainer.run(TrainingProgress(0, 0.0, 1)), strict=False):
        logs.append({name: float(value) for name, value in step.logs.items()})
    return logs


def gradients(student: Student) -> dict[str, torch.Tensor]:
    """The gradients that the last step left."""
    named = [*student.towers.named_parameters(), *student.objective.named_parameters(prefix="objective")]
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


__all__ = [
    "BATCH",
    "COCA_MODEL",
    "FFF",
    "PROTOCLIP",
    "RESOURCES",
    "VIT_MODEL",
    "attempt",
    "experiment",
    "gradients",
    "taken",
    "train",
    "untrained_teacher",
]
