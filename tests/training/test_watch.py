"""The watch over the loss: spikes are noted, a run that has diverged is stopped, a good one never is."""

from __future__ import annotations

import numpy as np
import pytest

from harness.base.errors import TrainingError
from harness.training.divergence import DivergenceMonitor, Spike

SAMPLES = np.array([3, 1, 4])


def falling(steps: int, seed: int = 0) -> list[float]:
    noise = np.random.default_rng(seed).normal(0, 0.05, steps)
    return [2 + 3 * float(np.exp(-step / 100)) + float(noise[step]) for step in range(steps)]


def watched(losses: list[float], limit: int = 30) -> list[Spike]:
    watch = DivergenceMonitor(limit)
    return [spike for step, loss in enumerate(losses, 1) if (spike := watch(step, loss, SAMPLES)) is not None]


def test_a_spike_is_noted_with_its_samples() -> None:
    losses = falling(200)
    losses[150] += 2
    (spike,) = watched(losses)
    assert (spike.step, spike.loss, spike.samples) == (151, losses[150], [3, 1, 4])
    assert spike.level == pytest.approx(2.7, abs=0.3)


def test_a_run_that_diverges_is_stopped() -> None:
    with pytest.raises(TrainingError, match=r"the loss has diverged: 5 at step 230, above .* for 30 steps in a row"):
        watched(falling(200) + [5.0] * 100)
    assert watched(falling(200) + [5.0] * 29)
    watched(falling(200) + [5.0] * 100, limit=0)


def test_a_single_good_step_starts_the_count_anew() -> None:
    bad = [5.0] * 29
    assert watched([*falling(200), *bad, 2.7, *bad, 2.7, *bad])
    with pytest.raises(TrainingError, match="for 30 steps in a row"):
        watched([*falling(200), *bad, 2.7, *bad, 5.0])


@pytest.mark.parametrize("losses", [falling(2000), [5.0] * 300, [-loss for loss in falling(300)]])
def test_others_are_not(losses: list[float]) -> None:
    assert watched(losses) == []


def test_a_shift_of_the_objective_is_no_divergence() -> None:
    spikes = watched(falling(400) + [loss + 1 for loss in falling(800)[400:]])
    assert spikes[0].step == 401


def test_a_resumed_watch_judges_alike() -> None:
    losses = falling(200) + [5.0] * 20
    one, two = DivergenceMonitor(30), DivergenceMonitor(30)
    for step, loss in enumerate(losses, 1):
        one(step, loss, SAMPLES)
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == one.state_dict()
    for step in range(len(losses) + 1, 230):
        two(step, 5.0, SAMPLES)
    with pytest.raises(TrainingError, match="at step 230"):
        two(230, 5.0, SAMPLES)
