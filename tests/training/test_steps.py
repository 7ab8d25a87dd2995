"""What a step of the trainer does besides the gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.made import attempt, experiment, taken, train

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
