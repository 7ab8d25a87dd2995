"""The training step against open_clip's loss and torch's AdamW, and the schedule in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import nn

from harness.base.errors import TrainingError
from harness.config.model import Model, Train
from harness.models import build_towers
from harness.node.attempt import AttemptRunner, load_request
from harness.training import Schedule
from harness.training.checkpoint import TrainingProgress
from tests.node.small import CONFIG, experiment, planned, prepared
from tests.node.test_resume import StopAfter


def test_two_steps_equal_open_clip_and_torch(tmp_path: Path) -> None:
    train = {"duration": "2 steps", "global_batch_size": 16, "schedule": "constant", "optimiser": {"lr": 1e-3}}
    _, run = planned(tmp_path, experiment(train=train))
    folder = prepared(tmp_path, run)
    attempt = AttemptRunner(folder, load_request(folder), 1, StopAfter(100))
    trainer, student = attempt.build()

    plain: Any = AttemptRunner(folder, load_request(folder), 1, StopAfter(100)).towers.model
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    named = [*(p for n, p in plain.named_parameters() if n not in ("logit_scale", "logit_bias")), scale]
    groups = [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    plain.train()
    for batch, step in zip(trainer._source.batches(0), trainer.run(TrainingProgress(0, 0.0, 1)), strict=False):
        image = nn.functional.normalize(plain.encode_image(student.towers.normalise(batch.images)), dim=-1)
        text = nn.functional.normalize(plain.encode_text(batch.tokens), dim=-1)
        loss = ClipLoss()(image, text, scale.exp())
        assert step.logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for (name, ours), theirs in zip(student.towers.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3, msg=name)
    assert student.objective.log_scale.item() == pytest.approx(scale.item(), abs=1e-5)


def test_schedules_in_closed_form() -> None:
    def rates(steps: int = 10, **fields: object) -> list[float]:
        train = Train.model_validate(
            {"duration": f"{steps} steps", "warmup": "2 steps", "global_batch_size": 4, **fields}
        )
        schedule = Schedule.of(train, samples=40)
        return [schedule.share(step) for step in range(steps)]

    assert rates(schedule="constant") == [0.5, 1.0] + [1.0] * 8
    assert rates(schedule="linear") == pytest.approx([0.5, 1.0] + [1 - i / 8 for i in range(8)])
    assert rates(schedule="cosine") == pytest.approx(
        [0.5, 1.0] + [0.5 + math.cos(math.pi * i / 8) / 2 for i in range(8)]
    )
    assert rates(schedule="constant", cooldown="3 steps") == pytest.approx([0.5] + [1.0] * 6 + [3 / 4, 2 / 4, 1 / 4])
    assert rates(schedule="linear", end_lr=0.2)[6] == pytest.approx(0.2 + 0.8 / 2)
    with pytest.raises(TrainingError, match=r"warm-up \(2 steps\) and cooldown \(9\) are longer than the training"):
        rates(schedule="constant", cooldown="9 steps")


@pytest.mark.parametrize("asked", ["loss", "weights"])
def test_temperature_starts_at_the_weights_where_asked(tmp_path: Path, asked: str) -> None:
    small = build_towers(Model(name="small", config=CONFIG))
    torch.save(small.model.state_dict() | {"logit_scale": torch.tensor(3.0)}, tmp_path / "x.pt")
    model = {"name": "small", "config": CONFIG, "weights": str(tmp_path / "x.pt"), "temperature": asked}
    one = experiment(model=model, loss={"kind": "infonce", "logit_scale": 5.0})
    folder = prepared(tmp_path, planned(tmp_path, one)[1])
    _, student = AttemptRunner(folder, load_request(folder), 1, StopAfter(1)).build()
    assert student.objective.log_scale.item() == pytest.approx(math.log(5.0) if asked == "loss" else 3.0)
