"""The training step against open_clip's loss and torch's AdamW, and the schedule in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import nn

from harness.attempt import Attempt, load_request
from harness.checkpoint import Progress
from harness.spec.model import Optimiser, Train
from harness.train import build_optimiser, learning_rate
from tests.node.small import experiment, planned, prepared
from tests.node.test_resume import StopAfter


def test_two_steps_equal_open_clip_and_torch(tmp_path: Path) -> None:
    train = {"duration": "2 steps", "global_batch_size": 16, "schedule": "constant", "optimiser": {"lr": 1e-3}}
    _, run = planned(tmp_path, experiment(train=train))
    folder = prepared(tmp_path, run)
    attempt = Attempt(folder, load_request(folder), 1, StopAfter(100))
    trainer, student = attempt._build()

    plain: Any = Attempt(folder, load_request(folder), 1, StopAfter(100)).towers.model
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    named = [*(p for n, p in plain.named_parameters() if n not in ("logit_scale", "logit_bias")), scale]
    groups = [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    plain.train()
    for batch, (_, logs) in zip(trainer._source.batches(0), trainer.run(Progress(0, 0.0, 1)), strict=False):
        image = nn.functional.normalize(plain.encode_image(batch.images), dim=-1)
        text = nn.functional.normalize(plain.encode_text(batch.tokens), dim=-1)
        loss = ClipLoss()(image, text, scale.exp())
        assert logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for (name, ours), theirs in zip(student.towers.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3, msg=name)
    assert student.objective.log_scale.item() == pytest.approx(scale.item(), abs=1e-5)


def test_weight_decay_is_on_matrices_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    matrices, others = build_optimiser(Optimiser(weight_decay=0.3), [module]).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert [tuple(p.shape) for p in matrices["params"]] == [(2, 3)]
    assert len(others["params"]) == 3


def test_schedules_in_closed_form() -> None:
    def rates(schedule: str) -> list[float]:
        train = Train.model_validate({"schedule": schedule, "optimiser": {"lr": 2.0}})
        return [learning_rate(train, step, 10, 2) for step in range(10)]

    assert rates("constant") == [1.0, 2.0] + [2.0] * 8
    assert rates("linear") == pytest.approx([1.0, 2.0] + [2 - i / 4 for i in range(8)])
    assert rates("cosine") == pytest.approx([1.0, 2.0] + [1 + math.cos(math.pi * i / 8) for i in range(8)])
