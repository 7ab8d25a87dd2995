"""Search strategies on tables of real learning curves: what is chosen, at equal cost.

    python benchmarks/search.py CURVES OUT.json [--tables NAME...] [--methods NAME...] [--seeds 10] [--jobs 1]

Four simulated workers train configurations of a table (see `search_curves`) epoch by epoch; a method gets the budget of
`BUDGET` full runs and is scored, at every multiple of a full run, by the error at full length of the configuration that
it would select (not by the best number that it has seen, which stands beside). The strategies are the harness's own
code (`harness.search.advisor`); tables of HELD_BACK were not looked at while `ladder` was made.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from search_curves import FAMILIES, Curves, load, tasks

from harness.search.advisor import Advisor, Trial
from harness.spec.search import Exploration

WORKERS = 4
BUDGET = 24.0
"""In full runs."""
FIRST = {"first_rung": 1, "reduction": 3}
FRACTIONS = (0.1, 0.25)
HELD_BACK = ("digits_noise40", "cancer_noise15", "blobs_noise10", "late_onset", "crossing", "divergence")


@dataclass(frozen=True)
class Method:
    """A strategy and how it selects."""

    sampler: str
    pruner: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    fraction: float = 1.0
    """Runs end after this share of the epochs."""
    by_best_seen: bool = False
    """Whether it selects the best value seen at any fidelity, as FastBO's paper does."""
    finish: int = 2


METHODS = {
    "random": Method("random"),
    "TPE": Method("tpe"),
    "GP": Method("gp"),
    "TPE + ASHA": Method("tpe", {"kind": "asha", **FIRST}),
    "random + ASHA": Method("random", {"kind": "asha", **FIRST}),
    "TPE + Hyperband": Method("tpe", {"kind": "hyperband", **FIRST}),
    "GP + median": Method("gp", {"kind": "median"}),
    "FastBO": Method("gp", {"kind": "fastbo"}, by_best_seen=True),
    "FastBO, selected at full length": Method("gp", {"kind": "fastbo"}),
    "FastBO around TPE": Method("tpe", {"kind": "fastbo"}, by_best_seen=True),
    "FastBO, relative thresholds": Method("gp", {"kind": "fastbo", "thresholds": "relative"}, by_best_seen=True),
    "ladder, GP": Method("gp", {"kind": "ladder"}),
    "ladder, TPE": Method("tpe", {"kind": "ladder"}),
    "ladder, random": Method("random", {"kind": "ladder"}),
} | {f"GP at {fraction:.0%}": Method("gp", fraction=fraction) for fraction in FRACTIONS}


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
    """Workers that train a table's cells epoch by epoch, in simulated time (an epoch is one unit)."""

    def __init__(self, curves: Curves, method: Method, seed: int) -> None:
        self.curves, self.method = curves, method
        self.length = max(round(method.fraction * curves.epochs), 1)
        space = {f"p.{axis}": {"kind": "int", "low": 0, "high": n - 1} for axis, n in enumerate(curves.shape)}
        exploration = Exploration.model_validate(
            {
                "space": space,
                "objectives": [{"metric": "table/error", "goal": "minimise"}],
                "sampler": {"kind": method.sampler},
                "pruner": method.pruner,
                "finish": method.finish,
                "seed": seed,
            }
        )
        self.advisor = Advisor(exploration, self.length)
        self.spent, self.asking_s = 0.0, 0.0
        self.trained: dict[tuple[int, ...], int] = {}
        """Epochs that each cell has been trained for: a cell that is suggested again costs nothing."""
        self.selected: list[float] = []
        self.seen: list[float] = []
        self._free = 0

    def run(self) -> Outcome:
        """Search until the budget is used up."""
        events: list[tuple[float, int]] = []
        running: dict[int, int] = {}
        time_s = 0.0
        closing = False
        waiting: list[int] = []
        while True:
            while len(running) < WORKERS:
                if not closing and self._room(len(running)) and self._free < 2000:
                    begun = time.perf_counter()
                    job = self.advisor.next()
                    self.asking_s += time.perf_counter() - begun
                    if job is None:
                        closing = True
                        continue
                    number = job.number
                elif waiting:
                    number = waiting.pop()
                else:
                    closing = True
                    if running:
                        break
                    waiting = [job.number for job in self.advisor.closing(WORKERS)]
                    if not waiting:
                        self._mark(final=True)
                        return self._outcome()
                    continue
                running[number] = self.advisor.trials[number].reached
                heapq.heappush(events, (time_s, number))
                time_s = self._advance(events, running)
            if running:
                time_s = self._advance(events, running)

    def _room(self, running: int) -> bool:
        """Whether a new run, and what is reserved for the end, fit into the budget."""
        reserve = (running + self.method.finish) * 0.5
        return self.spent / self.curves.epochs + reserve < BUDGET

    def _advance(self, events: list[tuple[float, int]], running: dict[int, int]) -> float:
        """The next epoch that ends: what the advisor makes of it."""
        now, number = heapq.heappop(events)
        trial = self.advisor.trials[number]
        cell = tuple(trial.values.values())
        level = running[number]
        cost = 0.0
        if level > trial.reached:
            self._report(trial, level, cell)
        if trial.limit is not None and trial.reached >= trial.limit:
            self.advisor.pause(number)
            del running[number]
            return now
        if trial.reached >= self.length:
            self.advisor.complete(number, [float(self.curves.errors[cell][self.length - 1])])
            del running[number]
            return now
        level += 1
        if self.trained.get(cell, 0) < level:
            self.trained[cell], cost = level, 1.0
            self.spent += 1
            self._free = 0
        else:
            self._free += 1
        running[number] = level
        heapq.heappush(events, (now + cost, number))
        return now

    def _report(self, trial: Trial, level: int, cell: tuple[int, ...]) -> None:
        self.advisor.report(trial.number, level, float(self.curves.errors[cell][level - 1]))
        self._mark()

    def _mark(self, *, final: bool = False) -> None:
        """Note what would be selected, at each multiple of a full run that has been spent."""
        due = min(int(self.spent // self.curves.epochs), int(BUDGET))
        if len(self.selected) >= due and not final:
            return
        chosen = self._choice()
        seen = min((min(one.curve.values()) for one in self.advisor.trials.values() if one.curve), default=1.0)
        error = 1.0 if chosen is None else float(self.curves.errors[tuple(chosen.values.values())][-1])
        if final:
            del self.selected[int(BUDGET) - 1 :], self.seen[int(BUDGET) - 1 :]
            due = int(BUDGET)
        self.selected += [error] * (due - len(self.selected))
        self.seen += [seen] * (due - len(self.seen))

    def _choice(self) -> Trial | None:
        tried = [trial for trial in self.advisor.trials.values() if trial.curve]
        if self.method.by_best_seen:
            return min(tried, key=lambda trial: min(trial.curve.values()), default=None)
        finished = [trial for trial in tried if trial.final is not None]
        pool = finished or tried
        known = self.advisor.forecasts()
        return min(pool, key=lambda trial: known[trial.number], default=None)

    def _outcome(self) -> Outcome:
        tried = [trial for trial in self.advisor.trials.values() if trial.curve]
        stops = [int(one.notes.get("efficient", one.reached)) for one in tried]
        spent = self.spent / self.curves.epochs
        return Outcome(self.selected, self.seen, len(tried), spent, stops, self.asking_s)


def measure(folder: Path, table: str, method: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Searches with one method on one table."""
    curves = load(folder, table)
    outcomes = [Simulation(curves, METHODS[method], seed).run() for seed in seeds]
    selected = np.array([one.selected for one in outcomes])
    regret = selected - curves.best
    return {
        "table": table,
        "method": method,
        "selected": selected.tolist(),
        "seen": [one.seen for one in outcomes],
        "regret": float(regret[:, -1].mean()),
        "half": _half_width(regret[:, -1]),
        "trials": float(np.mean([one.trials for one in outcomes])),
        "spent": float(np.mean([one.spent for one in outcomes])),
        "stop": float(np.mean([np.mean(one.stops) for one in outcomes])),
        "asking_s": float(np.mean([one.asking_s for one in outcomes])),
    }


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Regret at the end (mean, half of the 95 % interval, in points) of each method on each table; * is held back."""
    cells = {(one["method"], one["table"]): one for one in results}
    tables = list(dict.fromkeys(one["table"] for one in results))
    ranks: dict[str, list[int]] = {}
    for table in tables:
        ordered = sorted((one for one in results if one["table"] == table), key=lambda one: one["regret"])
        for place, one in enumerate(ordered, 1):
            ranks.setdefault(one["method"], []).append(place)
    heads = [f"{table}{'*' if table in HELD_BACK else ''}" for table in tables]
    lines = ["| method | " + " | ".join(heads) + " | mean rank |", "|---" * (len(tables) + 2) + "|"]
    for method in sorted(ranks, key=lambda name: np.mean(ranks[name])):
        found = [cells.get((method, table)) for table in tables]
        shown = [f"{100 * one['regret']:.2f} ± {100 * one['half']:.2f}" if one else "" for one in found]
        lines.append(f"| {method} | " + " | ".join(shown) + f" | {np.mean(ranks[method]):.1f} |")
    return "\n".join(lines)


def _half_width(values: np.ndarray[Any, Any]) -> float:
    """Half of the 95 % t-interval of a mean."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables", nargs="+", default=[*tasks(), *FAMILIES])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--summary", action="store_true", help="print what OUT.json holds, and search nothing")
    asked = parser.parse_args(arguments)
    results = json.loads(asked.out.read_text()) if asked.out.exists() else []
    if asked.summary:
        print(summary(results))
        return
    for table in asked.tables:
        for method in asked.methods:
            if any((one["table"], one["method"]) == (table, method) for one in results):
                continue
            one = measure(asked.curves, table, method, range(asked.seeds))
            results.append(one)
            asked.out.write_text(json.dumps(results))
            print(
                f"{table:16} {method:32} regret {one['regret']:.4f} ± {one['half']:.4f}  trials {one['trials']:.0f} "
                f"spent {one['spent']:.1f} stop {one['stop']:.1f} asking {one['asking_s']:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
