"""What a step of the trainer does besides the gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.training.checkpoint import TrainingProgress
from tests.training.made import FFF, attempt, experiment, taken, train

STEPS = 6
START = 1.0


def scales(root: Path, bound: Any) -> list[float]:
    """The factor on cosines after each step, from START on, with a learning rate that moves it far."""
    recipe = train(STEPS, optimiser={"lr": 0.1}, warmup="0 steps")
    loss = {"kind": "infonce", "logit_scale": START, "max_logit_scale": bound}
    _, trainer, student = attempt(root, experiment(train=recipe, loss=loss))
    seen = [line["logit_scale"] for line in taken(trainer, student, STEPS)]
    return [*seen[1:], float(student.objective.log_scale.detach().exp())]


def test_the_scale_is_clamped_after_each_step(tmp_path: Path) -> None:
    free = scales(tmp_path, "off")
    bound = (START + max(free)) / 2
    assert max(free) > bound > START, "without a clamp the scale goes up, or this tests nothing"
    held = scales(tmp_path, bound)
    assert max(held) == pytest.approx(bound)


def test_a_step_trains_on_the_mined_positives(tmp_path: Path) -> None:
    fixed = {"kind": "multi_positive_sigmoid", "logit_bias": -10.0}
    first = {}
    for mining in (FFF["mining"], {"kind": "none"}):
        _, trainer, student = attempt(
            tmp_path, experiment(**FFF | {"train": train(1), "loss": fixed, "mining": mining})
        )
        first[mining["kind"]] = taken(trainer, student, 1)[0]
    assert first["threshold"]["positives_per_image"] > first["none"]["positives_per_image"] == 3
    assert first["threshold"]["loss"] > first["none"]["loss"] + 1, "each further positive scores about -(-10)"


def test_the_average_follows_the_weights_after_each_step(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, experiment(train=train(3, ema_decay=0.9)))
    assert student.average is not None
    name, weight = next(iter(student.towers.model.named_parameters()))
    expected = weight.detach().clone()
    for _ in trainer.run(TrainingProgress(0, 0.0, 1)):
        expected = 0.9 * expected + 0.1 * weight.detach()
        torch.testing.assert_close(student.average.state_dict()[name], expected)
    assert not torch.allclose(expected, weight)
