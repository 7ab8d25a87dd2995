"""A search's results as tables: best configurations at full length, importance of fields, cost, and decisions."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from statistics import fmean

from harness.base.errors import StoreError
from harness.config.strategy import FastBOPolicy, LadderPolicy, NoPruner, OptunaPruner, PatiencePruner
from harness.reporting.formats.table import Table, TableCell, numbers, words
from harness.reporting.formats.terminal import plain_table
from harness.searching.driver import Driver
from harness.searching.study import Trial
from harness.searching.winner import described, shown

BEST_SHOWN = 10
LEAST_FOR_IMPORTANCE = 8


def render(driver: Driver) -> str:
    """The report for a terminal."""
    tables = [best_table(driver), importance_table(driver), cost_table(driver)]
    shown = [plain_table(table) for table in tables if table is not None]
    return "\n\n".join([driver.search.question, answer(driver), *shown, *driver.census(), *doubts(driver)])


def doubts(driver: Driver) -> list[str]:
    """A sentence for each configuration whose result is not that of its runs' records, or has a damaged record."""
    found = []
    for trial in finished(driver):
        try:
            seeds = driver.seed_results(trial)
        except StoreError as error:
            found.append(f"configuration {trial.number}: {error}")
            continue
        means = [fmean(column) for column in zip(*seeds, strict=True)]
        if means and not all(map(math.isclose, means, trial.final or ())):
            told = ", ".join(f"{value:.4f}" for value in trial.final or ())
            what = f"{driver.folder.log} says {told}, the records {', '.join(f'{mean:.4f}' for mean in means)}"
            found.append(f"configuration {trial.number}: {what}; restore the file, or move the search's folder away")
    return found


def answer(driver: Driver) -> str:
    """Answer the question in one sentence. The winner has the best value at full length, not the best value seen."""
    winner, metric = driver.study.best(), driver.search.objectives[0].metric
    if winner is None or winner.final is None:
        return "There is no answer yet: no configuration has been trained to the full length."
    if len(driver.search.objectives) > 1:
        return f"{len(front(driver))} configurations are on the front of {len(finished(driver))} that were measured."
    seeds = _seed_values(driver, winner)
    spread = f" ± {statistics.stdev(seeds):.4f} over {len(seeds)} seeds" if len(seeds) > 1 else " (one seed)"
    return f"Best at full length: {metric} {winner.final[0]:.4f}{spread}, with {described(winner)}."


def finished(driver: Driver) -> list[Trial]:
    """The configurations with a value at full length, best first."""
    done = [trial for trial in driver.study.trials.values() if trial.final is not None]
    return sorted(done, key=lambda trial: (trial.violation > 0, driver.study.loss(_first(trial))))


def front(driver: Driver) -> list[Trial]:
    """The configurations that no other beats in every objective."""
    done = [trial for trial in finished(driver) if trial.violation <= 0]
    losses = {trial.number: _losses(driver, trial) for trial in done}
    return [
        trial
        for trial in done
        if not any(
            other != losses[trial.number] and all(a <= b for a, b in zip(other, losses[trial.number], strict=True))
            for other in losses.values()
        )
    ]


def best_table(driver: Driver) -> Table:
    """The best configurations at full length with the spread over their seeds."""
    objectives = driver.search.objectives
    several = len(objectives) > 1
    chosen = (front(driver) if several else finished(driver))[:BEST_SHOWN]
    winner = driver.study.best()
    rows = []
    for trial in chosen:
        values = [f"{value:.4f}" for value in trial.final or ()]
        seeds = _seed_values(driver, trial)
        spread = f"{statistics.stdev(seeds):.4f}" if len(seeds) > 1 else ""
        origin = "" if trial.source == "sampled" else trial.source
        note = "breaks a constraint" if trial.violation > 0 else trial.why or origin
        cells = [*values, spread, *(shown(value) for value in trial.values.values()), note]
        rows.append((TableCell(str(trial.number), best=trial is winner and not several), *map(TableCell, cells)))
    heads = [*(objective.metric for objective in objectives), "seed sd", *driver.search.space]
    caption = "Front: no other is better in every objective" if several else "Best configurations at full length"
    return Table("best", caption, (*words("configuration"), *numbers(*heads), *words("")), tuple(rows))


def importance_table(driver: Driver) -> Table | None:
    """The importance of each field (Optuna's PED-ANOVA on each configuration's final or expected loss)."""
    shares = importances(driver)
    if not shares:
        return None
    rows = tuple((TableCell(path), TableCell(f"{share:.0%}")) for path, share in shares.items())
    note = "Shares of what sets the better configurations apart (PED-ANOVA); from few configurations, a hint."
    return Table("importance", "Which field mattered", (*words("field"), *numbers("importance")), rows, (note,))


def importances(driver: Driver) -> dict[str, float]:
    """Importance of each field, 0 to 1, largest first; empty if there are too few configurations."""
    import optuna

    from harness.searching.samplers import distributions, encoded

    known = driver.study.forecasts()
    if len(known) < LEAST_FOR_IMPORTANCE:
        return {}
    probe = optuna.create_study()
    space = distributions(driver.search.space)
    for number, loss in known.items():
        params = encoded(driver.search.space, driver.study.trials[number].values)
        probe.add_trial(optuna.trial.create_trial(value=loss, params=params, distributions=space))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about few or equal configurations; the table's note covers that
            found = optuna.importance.get_param_importances(probe)
    except (ValueError, RuntimeError):  # all configurations have the same loss
        return {}
    return {path: share for path, share in found.items() if math.isfinite(share)}


def cost_table(driver: Driver) -> Table:
    """The amount of training, compared with training every configuration to its end."""
    tried = [one for one in driver.study.trials.values() if one.status != "skipped" and one.source == "sampled"]
    bill = sum(run.steps for one in tried for run in driver.configurations.runs(one.values))
    spent = driver.spent_steps()
    rows = [
        ("configurations", f"{len(tried)}"),
        ("trained to the end", f"{sum(one.final is not None for one in tried)}"),
        ("optimiser steps", f"{spent:,}"),
        ("steps without early stopping", f"{bill:,}"),
        ("saved", f"{1 - spent / bill:.0%}" if bill else ""),
    ]
    cells = tuple((TableCell(name), TableCell(value)) for name, value in rows)
    return Table("cost", "Cost", (*words(""), *numbers("this search")), cells)


def decisions_table(driver: Driver) -> Table | None:
    """What FastBO found for each configuration: efficient point, saturation point, residual of the fit."""
    match driver.search.pruner:
        case FastBOPolicy():
            pass
        case NoPruner() | OptunaPruner() | PatiencePruner() | LadderPolicy():
            return None
    rows = tuple(
        (TableCell(str(one.number)), *(_note(one, name) for name in ("efficient", "saturation", "residual")))
        for one in driver.study.trials.values()
        if one.notes
    )
    heads = (*words("configuration"), *numbers("efficient point e", "saturation point s", "fit residual"))
    note = "In evaluations; the full length has " + f"{driver.configurations.length}."
    return Table("decisions", "Adaptive fidelity", heads, rows, (note,))


def _note(trial: Trial, name: str) -> TableCell:
    return TableCell(shown(trial.notes[name])) if name in trial.notes else TableCell("terminated", muted=True)


def _seed_values(driver: Driver, trial: Trial) -> Sequence[float]:
    try:
        return [found[0] for found in driver.seed_results(trial)]
    except StoreError:
        return []  # `doubts` reports it


def _first(trial: Trial) -> float:
    return trial.final[0] if trial.final else math.nan


def _losses(driver: Driver, trial: Trial) -> tuple[float, ...]:
    pairs = zip(trial.final or (), driver.search.objectives, strict=True)
    return tuple(-value if objective.goal == "maximise" else value for value, objective in pairs)
