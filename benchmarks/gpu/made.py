"""Batches and trainers that are made before the clock starts."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter
from torch import Tensor

from harness.config.captions import Captions
from harness.config.loss import Loss
from harness.config.mining import ThresholdMining
from harness.config.model import Train
from harness.config.resources import Resources
from harness.data.dataset.caption_choice import Chosen
from harness.losses import build_objective
from harness.mining import Calibration, Thresholds, build_rule
from harness.models import Towers, build_towers
from harness.models.fitting import fit_out
from harness.training import Trainer, build_student
from harness.training.batches import Batch
from harness.training.checkpoint import TrainingProgress
from harness.training.mining_step import Miner
from harness.training.split import Split

from .bench import Bench

CAPTIONS = 6
"""Captions of an image in the FFF step: five of a captioner's and the raw one."""
WORDS = "red old dog cat house tree river small green car man street".split()  # noqa: SIM905
THRESHOLDS = Thresholds(image_text=0.55, image_image=0.8, text_text=0.8, image_text_guard=0.4)


def teacher_features(images: int, captions: int, dtype: torch.dtype, width: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, e] and captions [M, e] in groups of four, on the CPU, and the owners [M]."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(max(images // 4, 1), width, generator=generator), dim=1)
    group, owner = torch.arange(images) % len(centres), torch.arange(images).repeat_interleave(captions)
    found = []
    for places in (group, group[owner]):
        near = centres[places] + 0.08 * torch.randn(len(places), width, generator=generator)
        found.append(F.normalize(near, dim=1).to(dtype))
    return found[0], found[1], owner


def objective_of(fields: dict[str, Any], device: torch.device) -> Any:
    return build_objective(TypeAdapter(Loss).validate_python(fields)).to(device)


class _Source:
    """Batches that are there before the clock starts: what the trainer costs, not the data."""

    def __init__(self, batches: list[Batch], size: int) -> None:
        self._batches, self.batch_size, self.dataset = batches, size, SimpleNamespace(epoch_samples=10**6)

    def batches(self, _first: int) -> Iterator[Batch]:
        while True:
            yield from self._batches


def made_batches(bench: Bench, towers: Towers, images: int, captions: int, *, taught: bool) -> list[Batch]:
    """Two batches in pinned memory, with texts of eight to sixteen words."""
    made = []
    for seed in range(2):
        draws = np.random.default_rng(seed)
        texts = [" ".join(draws.choice(WORDS, int(draws.integers(8, 17)))) for _ in range(images * captions)]
        pixels = draws.integers(0, 256, (images, 3, towers.image_size, towers.image_size), dtype=np.uint8)
        owner, slot = np.repeat(np.arange(images), captions), np.tile(np.arange(captions), images)
        image, text, _ = teacher_features(images, captions, torch.float16)
        whole = torch.from_numpy(pixels)
        made.append(
            Batch(
                samples=np.arange(images),
                everyone=np.arange(images),
                first=0,
                chosen=Chosen(owner, np.zeros_like(owner), slot, slot),
                images=whole.pin_memory() if bench.is_cuda else whole,
                views=whole[:, None][:, :0],
                tokens=towers.tokenize(texts),
                text_views=torch.empty(len(texts), 0, 0, dtype=torch.long),
                has_negative=None,
                masked=None,
                epoch=0.0,
                teacher_image=image if taught else None,
                teacher_text=text if taught else None,
            )
        )
    return made


def made_trainer(
    bench: Bench, images: int, captions: int, *, precision: str = "bfloat16", micro: int | None = None, **how: Any
) -> Trainer:
    """A trainer of the model on batches that are there; with several captions it mines."""
    towers = build_towers(bench.model).to(bench.device)
    fit_out(towers, Resources(**how))
    train = Train.model_validate(
        {"duration": "10000 steps", "global_batch_size": images, "precision": precision, "optimiser": {"lr": 1e-4}}
    )
    mined = captions > 1
    objective = objective_of(
        {"kind": "multi_positive_sigmoid", "logit_bias": -10} if mined else {"kind": "infonce"}, bench.device
    )
    student = build_student(train, towers, objective, divergence_steps=0)
    rule = build_rule(ThresholdMining(image_text=0.55), calibration) if mined else None
    miner = None if rule is None else Miner(rule, None, Captions())
    source: Any = _Source(made_batches(bench, towers, images, captions, taught=mined), images)
    return Trainer(train, student, source, miner, Split(images, micro or images), seed=0)


def calibration() -> Calibration:
    return Calibration(*teacher_features(64, CAPTIONS, torch.float16))


def timed_steps(bench: Bench, trainer: Trainer) -> float:
    """Median seconds of a step."""
    steps = trainer.run(TrainingProgress(0, 0.0, 1))
    return bench.seconds(lambda: next(steps), 8, warm=4)
