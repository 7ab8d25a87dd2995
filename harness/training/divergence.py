"""A watch over the loss: single spikes are noted with their samples, a run that has diverged is stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.errors import TrainingError

SETTLING = 20
"""Steps before the watch says anything: their mean is the level that training started from."""
LEVEL_MEMORY, DEVIATION_MEMORY = 0.9, 0.98
"""Decay a step of the running level and of the mean deviation from it."""
SPIKE = 6.0
"""A loss this many mean deviations above its level is a spike."""
LEVEL_REACH, DEVIATION_REACH = 3.0, 1.5
"""A loss further away, in mean deviations, moves the level and the deviation no more than one that far away."""
GIVEN_BACK = 0.9


@dataclass(frozen=True)
class Spike:
    """One step whose loss stood out."""

    step: int
    """As in metrics.jsonl: 1 is the first."""
    loss: float
    level: float
    """The running level of the loss before the step."""
    samples: list[int]
    """Indices in the data set of the whole global batch."""


@dataclass
class _State:
    seen: int = 0
    level: float = 0.0
    deviation: float = 0.0
    start: float = 0.0
    best: float = float("inf")
    bad: int = 0


class DivergenceMonitor:
    """Looks at the loss of every step. All processes see the same losses, so all come to the same end."""

    def __init__(self, divergence_steps: int) -> None:
        self._limit = divergence_steps
        self._state = _State()

    def __call__(self, step: int, loss: float, samples: npt.NDArray[np.int64]) -> Spike | None:
        """Look at the loss of step number `step`; the spike that it is, if it is one.

        Raises:
            TrainingError: the run has diverged.
        """
        state = self._state
        spike = None
        if state.seen >= SETTLING:
            if loss > state.level + SPIKE * state.deviation:
                spike = Spike(step, loss, state.level, samples.tolist())
            self._judge(step, loss)
        self._move(loss)
        return spike

    def _judge(self, step: int, loss: float) -> None:
        """Count the steps in a row at which most of what training had gained is gone."""
        state = self._state
        gained = state.start - state.best
        lost = gained > SPIKE * state.deviation and loss > state.start - (1 - GIVEN_BACK) * gained
        state.bad = state.bad + 1 if lost else 0
        if self._limit and state.bad >= self._limit:
            raise TrainingError(
                f"the loss has diverged: {loss:.4g} at step {step}, above {state.start - 0.1 * gained:.4g} for "
                f"{state.bad} steps in a row, after it had fallen from {state.start:.4g} to {state.best:.4g}",
                fix="lower train.optimiser.lr, set train.grad_clip, or look at spikes.jsonl; "
                "resources.divergence_steps = 0 lets it continue",
            )

    def _move(self, loss: float) -> None:
        state = self._state
        state.seen += 1
        if state.seen <= SETTLING:
            before = state.start
            state.start += (loss - state.start) / state.seen
            state.deviation += (abs(loss - before) * (state.seen > 1) - state.deviation) / state.seen
            state.level = state.start
            return
        away = loss - state.level
        state.level += (1 - LEVEL_MEMORY) * min(away, LEVEL_REACH * state.deviation)
        state.deviation += (1 - DEVIATION_MEMORY) * (
            min(abs(away), DEVIATION_REACH * state.deviation) - state.deviation
        )
        state.best = min(state.best, state.level)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge alike."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state."""
        self._state = _State(**state)
