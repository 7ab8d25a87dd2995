"""Syne Tune's strategies behind the calls of `harness.searching.study.SearchStudy` that the simulation makes.

`pip install syne-tune==0.16.0` beside the harness; it is no part of the lock file. One bracket, rungs as our ASHA has
them. What is left at the end is done as here: the most promising `finish` configurations are trained to full length.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from search_curves import Curves

from harness.searching.study import Assignment, Trial


class SyneTune:
    """One of Syne Tune's asynchronous schedulers, which stop trials at rungs."""

    def __init__(self, name: str, curves: Curves, length: int, *, seed: int, finish: int) -> None:
        """Begin empty.

        Args:
            name: of a class of syne_tune.optimizer.baselines.
            curves: the table.
            length: epochs of a full run.
            finish: how many configurations are to have a value at full length.
        """
        from syne_tune.config_space import choice, randint
        from syne_tune.optimizer import baselines

        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        space = {
            f"p.{axis}": randint(0, levels - 1) if curves.is_ordered else choice(list(range(levels)))
            for axis, levels in enumerate(curves.shape)
        }
        self._scheduler = getattr(baselines, name)(
            config_space=space, metric="error", time_attr="epoch", max_t=length, random_seed=seed
        )
        self._finish, self._length = finish, length
        self._theirs: dict[int, Any] = {}
        self.trials: dict[int, Trial] = {}

    def next(self) -> Assignment | None:
        """A new configuration."""
        from syne_tune.backend.trial_status import Trial as Theirs

        suggestion = self._scheduler.suggest()
        if suggestion is None:
            return None
        number = len(self.trials)
        self.trials[number] = Trial(number, dict(suggestion.config))
        self._theirs[number] = Theirs(number, suggestion.config, datetime.now())
        self._scheduler.on_trial_add(self._theirs[number])
        return Assignment(number, None)

    def report(self, number: int, level: int, value: float) -> None:
        """The error after an epoch; may set the trial's limit."""
        trial = self.trials[number]
        trial.curve[level] = value
        if number not in self._theirs:  # it was stopped, and goes on for its value at full length
            return
        decision = self._scheduler.on_trial_result(self._theirs[number], {"error": value, "epoch": level})
        if decision == "STOP" and level < self._length:
            trial.limit = level

    def pause(self, number: int) -> None:
        """The trial was stopped: the scheduler hears no more of it."""
        self.trials[number].status = "stopped"
        del self._theirs[number]

    def complete(self, number: int, final: Sequence[float]) -> None:
        """The trial has been trained to its full length."""
        trial = self.trials[number]
        trial.final, trial.status = tuple(final), "complete"
        theirs = self._theirs.pop(number, None)
        if theirs is not None:
            self._scheduler.on_trial_complete(theirs, {"error": final[0], "epoch": self._length})

    def closing(self, workers: int) -> list[Assignment]:  # noqa: ARG002
        """What is left to train to the full length."""
        known = self.forecasts()
        best = sorted(known, key=lambda number: known[number])[: self._finish]
        short = [number for number in best if self.trials[number].final is None]
        for number in short:
            self.trials[number].status, self.trials[number].limit = "running", None
        return [Assignment(number, None) for number in short]

    def forecasts(self) -> dict[int, float]:
        """The last error of each configuration."""
        return {number: trial.curve[trial.reached] for number, trial in self.trials.items() if trial.curve}
