"""A search on a table of learning curves: workers train configurations epoch by epoch, in simulated time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from search_curves import Curves
from search_peers import SyneTune

from harness.config.search import Exploration
from harness.searching.study import Assignment, SearchStudy, Trial

WORKERS = 4
REPEATS = 2000
"""Epochs in a row that cost nothing, as their cells were trained before: then the strategy has nothing new to try."""


class Strategy(Protocol):
    """What the simulation asks and tells; `harness.searching.study.SearchStudy` is one."""

    @property
    def trials(self) -> Mapping[int, Trial]:
        """By number."""

    def next(self) -> Assignment | None:
        """The next thing to train."""

    def report(self, number: int, level: int, value: float) -> None:
        """An epoch has ended."""

    def pause(self, number: int) -> None:
        """A trial has come to its limit."""

    def complete(self, number: int, final: Sequence[float]) -> None:
        """A trial has come to the full length."""

    def closing(self, workers: int) -> list[Assignment]:
        """What is left to train when the budget is used up; empty at the end."""

    def forecasts(self) -> Mapping[int, float]:
        """What each configuration is worth, lower is better."""


@dataclass(frozen=True)
class Method:
    """A strategy and how it selects."""

    sampler: str
    """`syne-tune NAME`: one of theirs."""
    pruner: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    fraction: float = 1.0
    """Runs end after this share of the epochs."""
    by_best_seen: bool = False
    """Whether it selects the best value seen at any fidelity, as FastBO's paper does."""
    finish: int = 2

    def begin(self, curves: Curves, length: int, seed: int) -> Strategy:
        """An empty study."""
        library, _, name = self.sampler.partition(" ")
        if library == "syne-tune":
            return SyneTune(name, curves, length, seed=seed, finish=self.finish)
        space = {
            f"p.{axis}": {"kind": "int", "low": 0, "high": n - 1}
            if curves.is_ordered
            else {"kind": "choice", "of": list(range(n))}
            for axis, n in enumerate(curves.shape)
        }
        asked = {
            "space": space,
            "objectives": [{"metric": "table/error", "goal": "minimise"}],
            "sampler": {"kind": self.sampler},
            "pruner": self.pruner,
            "finish": self.finish,
            "seed": seed,
        }
        return SearchStudy(Exploration.model_validate(asked), length)


@dataclass
class Outcome:
    """One search: at each multiple of a full run the selected configuration's error at full length, and best seen."""

    selected: list[float]
    seen: list[float]
    trials: int
    spent: float
    """Full runs."""
    stops: list[int]
    """Epochs at which configurations were last left."""
    asking_s: float


class Simulation:
    """One search with one method on one table. An epoch is the unit of cost and of time."""

    def __init__(self, curves: Curves, method: Method, seed: int) -> None:
        self.curves, self.method = curves, method
        self.length = max(round(method.fraction * curves.epochs), 1)
        self.strategy = method.begin(curves, self.length, seed)
        self.spent, self.asking_s = 0.0, 0.0
        self.trained: dict[tuple[int, ...], int] = {}
        """Epochs that each cell has been trained for: a cell that is suggested again costs nothing."""
        self.selected: list[float] = []
        self.seen: list[float] = []
        self._events: list[tuple[float, int]] = []
        self._running: dict[int, int] = {}
        """Epoch that each running trial is at."""
        self._time, self._free = 0.0, 0

    def run(self) -> Outcome:
        """Search until the budget is used up, then train what the strategy wants to know at full length."""
        while self._fill():
            self._advance()
        while self._running:
            self._advance()
        while jobs := self.strategy.closing(WORKERS):
            for job in jobs:
                self._train(job.number)
            while self._running:
                self._advance()
        self._mark(final=True)
        return self._outcome()

    def _fill(self) -> bool:
        """Give every free worker something to do; False when nothing new may begin any more."""
        while len(self._running) < WORKERS:
            if not self._room() or self._free >= REPEATS:
                return False
            begun = time.perf_counter()
            job = self.strategy.next()
            self.asking_s += time.perf_counter() - begun
            if job is None:
                return False
            self._train(job.number)
        return True

    def _room(self) -> bool:
        """Whether a new run, and what is reserved for the end, fit into the budget."""
        reserve = (len(self._running) + self.method.finish) * 0.5
        return self.spent / self.curves.epochs + reserve < self.curves.budget

    def _advance(self) -> None:
        """The next epoch that ends: what the strategy makes of it."""
        self._time, number = heapq.heappop(self._events)
        trial = self.strategy.trials[number]
        errors = self.curves.errors[tuple(trial.values.values())]
        self.strategy.report(number, self._running[number], float(errors[self._running[number] - 1]))
        self._mark()
        if trial.limit is not None and trial.reached >= trial.limit:
            self.strategy.pause(number)
            del self._running[number]
        elif trial.reached >= self.length:
            self.strategy.complete(number, [float(errors[self.length - 1])])
            del self._running[number]
        else:
            self._train(number)

    def _train(self, number: int) -> None:
        """Begin the next epoch of a trial."""
        trial = self.strategy.trials[number]
        cell, level = tuple(trial.values.values()), trial.reached + 1
        new = self.trained.get(cell, 0) < level
        if new:
            self.trained[cell] = level
            self.spent += 1
        self._free = 0 if new else self._free + 1
        self._running[number] = level
        heapq.heappush(self._events, (self._time + new, number))

    def _mark(self, *, final: bool = False) -> None:
        """Note what would be selected, at each multiple of a full run that has been spent."""
        budget = self.curves.budget
        due = min(int(self.spent // self.curves.epochs), budget)
        if len(self.selected) >= due and not final:
            return
        chosen = self._choice()
        seen = min((min(one.curve.values()) for one in self.strategy.trials.values() if one.curve), default=1.0)
        error = 1.0 if chosen is None else float(self.curves.errors[tuple(chosen.values.values())][-1])
        if final:
            del self.selected[budget - 1 :], self.seen[budget - 1 :]
            due = budget
        self.selected += [error] * (due - len(self.selected))
        self.seen += [seen] * (due - len(self.seen))

    def _choice(self) -> Trial | None:
        tried = [trial for trial in self.strategy.trials.values() if trial.curve]
        if self.method.by_best_seen:
            return min(tried, key=lambda trial: min(trial.curve.values()), default=None)
        finished = [trial for trial in tried if trial.final is not None]
        known = self.strategy.forecasts()
        return min(finished or tried, key=lambda trial: known[trial.number], default=None)

    def _outcome(self) -> Outcome:
        tried = [trial for trial in self.strategy.trials.values() if trial.curve]
        stops = [int(one.notes.get("efficient", one.reached)) for one in tried]
        spent = self.spent / self.curves.epochs
        return Outcome(self.selected, self.seen, len(tried), spent, stops, self.asking_s)
