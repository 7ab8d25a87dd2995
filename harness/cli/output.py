"""Print plans and states as tables: with rich on a terminal, as plain aligned lines elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import StoreError
from harness.config.axes import level_name
from harness.config.experiment import flatten
from harness.config.search import Choice, FloatRange, IntRange, Parameter, Search
from harness.execute.life import Life
from harness.planning import claims
from harness.planning.isolation import confounded, isolation
from harness.planning.plan import Arm, Plan
from harness.runs.folder import RunFolder
from harness.runs.request import read_request
from harness.runs.store import Store

if TYPE_CHECKING:
    from harness.planning.estimate import Operations
    from harness.reporting.forecast import Forecast

WATCH_S = 2.0
MOST_CHANGES = 4
"""Largest number of fields that a plan lists for an arm."""
LONGEST_VALUE = 40


def table(title: str, header: list[str], rows: list[list[str]], optional: Sequence[str] = ()) -> None:
    """Print a table. On a terminal that is too narrow, the `optional` columns are left out, the first ones first."""
    if sys.stdout.isatty():
        _drawn(title, header, rows, optional)
        return
    widths = _widths(header, rows)
    print(title)
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _drawn(title: str, header: list[str], rows: list[list[str]], optional: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width, widths = shutil.get_terminal_size().columns, _widths(header, rows)
    shown = [index for index, name in enumerate(header) if name not in optional or any(row[index] for row in rows)]
    dropped = []
    for name in optional:
        if name in header and sum(widths[index] + 2 for index in shown) - 1 > width:
            dropped += [name] if (index := header.index(name)) in shown else []
            shown = [one for one in shown if one != index]
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index in shown:
        drawn.add_column(Text(header[index]), overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(row[index]) for index in shown))
    console = Console(width=width, highlight=False)
    console.print(Text(title, style="bold"))
    console.print(drawn)
    if dropped:
        console.print(Text(f"too narrow for: {', '.join(dropped)}", style="dim"))


def _changes(arm: Arm, base: Mapping[str, Any]) -> str:
    """What an arm changes in the fields `base`: long values are cut, many fields are counted."""
    differing = {path: str(value) for path, value in arm.changes.items() if path not in base or base[path] != value}
    cut = {
        path: text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..." for path, text in differing.items()
    }
    found = [f"{path}={text}" for path, text in cut.items()]
    more = len(found) - MOST_CHANGES
    return ", ".join(found[:MOST_CHANGES]) + (f" and {more} more" if more > 0 else "") if found else "nothing"


def _widths(header: list[str], rows: list[list[str]]) -> list[int]:
    return [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]


def plan(
    planned: Plan, store: Store, timed: Mapping[str, float] | None = None, on_gpu: Operations | None = None
) -> None:
    """Print the arms, their changes, the states of their runs, and the cost. `timed`: see `estimate`."""
    from harness.execute.status import planned_states

    states = planned_states(planned, store)
    users = Counter(planned.cells.values())
    base = flatten(planned.ablation.experiment.science(defaults=True))
    rows = []
    for arm in planned.arms:
        ids = planned.ids(arm.name)
        counted = Counter(states[run] for run in ids.values())
        first = planned.runs[next(iter(ids.values()))]
        steps = str(first.steps) if first.steps else "?"
        done = ", ".join(f"{number} {state}" for state, number in sorted(counted.items()))
        rows.append([arm.name, str(len(ids)), steps, done, _changes(arm, base)])
    table(
        f"{planned.name}: {planned.ablation.question}",
        ["arm", "seeds", "steps", "runs", "changes"],
        rows,
        ["seeds", "steps"],
    )
    _published(planned)
    teachers = [run for run in planned.runs if run not in users]
    for run in teachers:
        say(f"teacher {run}: {planned.runs[run].steps} steps, {states[run]}")
    if (demand := planned.ablation.on_demand) is not None:
        looks = ", ".join(map(str, demand.looks))
        over = ", and no claim is open" if planned.looks and planned.looks[-1].is_last else ""
        say(f"seeds until the claims are decided: looks at {looks} seeds; {len(planned.looks)} taken{over}")
    say(_forecast_line(planned, store))
    say(_cost_line(planned, store, sum(state is Life.TRAINED for state in states.values()), timed))
    _say_operations(on_gpu)
    for reason in planned.missing_data:
        say(f"missing: {reason}")
    for warning in confounded(planned.ablation, planned.experiments):
        say(f"confounded: {warning}")


def _published(planned: Plan) -> None:
    """Print the rows of reported numbers: those of arms, and those of systems without one with the reason."""
    ablation, labels = planned.ablation, {arm.name: arm.label for arm in planned.arms}
    numbers = Counter(one.arm for one in ablation.references)
    primary = {one.arm: f"{one.value:g}" for one in ablation.references if one.metric == ablation.primary}
    rows = [
        [labels.get(name) or ablation.published[name].label, primary.get(name, ""), str(numbers[name]), why]
        for name, why in {
            **{arm.name: "an arm" for arm in planned.arms if arm.name in numbers},
            **{name: f"no arm: {one.reason}" for name, one in ablation.published.items()},
        }.items()
    ]
    if ablation.published:
        table("reported rows", ["system", ablation.primary, "numbers", "trained here"], rows, ["numbers"])


def _values(parameter: Parameter) -> str:
    match parameter:
        case FloatRange() | IntRange():
            return " to ".join(map(level_name, parameter.ends()))
        case Choice():
            return ", ".join(parameter.names)


def search_plan(
    search: Search,
    base: Plan,
    store: Store,
    timed: Mapping[str, float] | None = None,
    counted: Operations | None = None,
) -> None:
    """Print a search's space, strategy and budget, and the cost of one configuration."""
    rows = [[path, _values(parameter)] for path, parameter in search.space.items()]
    table(f"{base.name}: {search.question}", ["field", "values"], rows)
    goals = ", ".join(f"{one.goal} {one.metric}" for one in search.objectives)
    say(f"{goals}; sampler {search.sampler.kind}, pruner {search.pruner.kind}")
    limits = {name: value for name, value in search.budget.model_dump().items() if value is not None}
    say(f"budget: {', '.join(f'{name} = {value:g}' for name, value in limits.items())}")
    say(f"one configuration: {_cost_line(base, store, 0, timed)}")
    _say_operations(counted)
    for reason in base.missing_data:
        say(f"missing: {reason}")


def note_claims(planned: Plan, store: Store) -> None:
    """Note when the claims were first planned. A store that cannot be written is said, and hinders no plan."""
    try:
        claims.note_claims(planned, store)
    except StoreError as error:
        print(f"harness: the time at which the claims were planned is not recorded: {error}", file=sys.stderr)


def say_census(planned: Plan) -> None:
    """Print what each data set is read as and what is left out of it, wherever anything is left out or guessed."""
    for fingerprint, report in planned.data.items():
        for sentence in report.census():
            say(f"data {fingerprint[:12]}: {sentence}")


def plan_json(
    planned: Plan, store: Store, timed: Mapping[str, float] | None = None, counted: Operations | None = None
) -> dict[str, Any]:
    """The plan as JSON data, described by `harness.docs.outputs.PlanOutput`."""
    from harness.execute.status import planned_states
    from harness.planning.estimate import estimate

    ablation, states = planned.ablation, planned_states(planned, store)
    return {
        "name": planned.name,
        "question": ablation.question,
        "baseline": ablation.baseline,
        "primary": ablation.primary,
        "provisional": list(planned.missing_data),
        "census": {fingerprint: report.census() for fingerprint, report in planned.data.items()},
        "arms": [
            {
                "name": arm.name,
                "label": arm.label,
                "changes": dict(arm.changes),
                "differs_from_baseline": {path: list(pair) for path, pair in planned.differences(arm.name).items()},
                "runs": {str(seed): run for seed, run in planned.ids(arm.name).items()},
            }
            for arm in planned.arms
        ],
        "runs": [
            {
                "id": run.id,
                "role": run.role,
                "teacher": run.teacher,
                "steps": run.steps,
                "state": states[run.id].value,
            }
            for run in planned.runs.values()
        ],
        "claims": [
            {
                **claim.model_dump(include={"text", "arm", "than", "compares"}),
                "factor": isolation(claim, planned.experiments).factor,
                "differs_besides": list(isolation(claim, planned.experiments).besides),
            }
            for claim in ablation.claims
        ],
        "references": [reference.model_dump() for reference in ablation.references],
        "published": {name: one.model_dump() for name, one in ablation.published.items()},
        "cost": estimate(planned, store, store.states(planned.runs), timed)
        | {"operations": asdict(counted) if counted else None},
        "can_tell": asdict(found) if (found := _can_tell(planned, store)) else None,
    }


def log(folder: RunFolder, *, follow: bool) -> None:
    """Print a run's log. With `follow`, wait for a pending run, and keep printing new lines while the run is alive."""
    job = _jobs_folder(folder)
    while follow and job is not None and not folder.log.exists() and not (job / "closed.json").exists():
        time.sleep(0.5)
    if not folder.log.exists():
        print(f"run {folder.id} has written nothing yet" + (f"; its job's output is in {job}" if job else ""))
        return
    with folder.log.open(encoding="utf-8", errors="replace") as stream:
        while True:
            print(stream.read(), end="", flush=True)
            if not follow or not _is_alive(folder):
                return
            time.sleep(0.5)


def _jobs_folder(folder: RunFolder) -> Path | None:
    """The folder of the run's submission, which holds the job's output apart from the runs' own logs."""
    if not folder.request.exists():
        return None
    submission = read_request(folder).submission
    return folder.path.parents[1] / "submissions" / submission if submission else None


def _is_alive(folder: RunFolder) -> bool:
    """Whether a process may still write to the log, on this machine or on a node whose locks are not visible here."""
    return folder.is_locked() or (not folder.record_file.exists() and any(one.job for one in folder.attempts.open()))


def plural(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(sentence: str) -> None:
    """Print a sentence; on a terminal, wrapped at spaces."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        sentence = textwrap.fill(sentence, width, break_long_words=False, break_on_hyphens=False)
    print(sentence)


def as_json(data: Any) -> None:
    """Print data as JSON: indented on a terminal, on one line elsewhere."""
    print(json.dumps(data, indent=1 if sys.stdout.isatty() else None))


def seconds(duration: float) -> str:
    """Format a duration for display: `45 s`, `12 min`, `3.5 h`."""
    if duration < 90:
        return f"{duration:.0f} s"
    return f"{duration / 60:.0f} min" if duration < 5400 else f"{duration / 3600:.1f} h"


def _say_operations(counted: Operations | None) -> None:
    """Print GPU-hours from operations: of each arm, and of all missing runs."""
    if counted is None:
        return
    rows = [[arm, f"{counted.sample_gflops[arm]:,.1f}", hours(one)] for arm, one in counted.arms.items()]
    table("operations", ["arm", "GFLOP per image", "GPU-hours"], rows)
    peak = f"{counted.peak_flops / 1e12:g} TFLOP/s of one {counted.gpu}"
    say(
        f"about {hours(counted.gpu_hours)} GPU-hours: {counted.flops:.3g} operations of the towers, with captions of "
        f"{counted.tokens} tokens, at {counted.utilisation:.0%} of the {peak}; data loading, teacher features and "
        "evaluation are not counted"
    )


def hours(amount: float) -> str:
    """Format hours with three digits or more: `12,345`, `86.4`, `0.00123`."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _forecast_line(planned: Plan, store: Store) -> str:
    """What the planned seeds can tell."""
    metric, number = planned.ablation.primary, len(planned.ids(planned.ablation.baseline))
    if number == 1:
        return "1 seed can tell no difference, since it shows no spread; give at least two"
    seeds = plural(number, "seed")
    if (found := _can_tell(planned, store)) is None:
        return (
            f"the difference that {seeds} can tell is not known: no two arms of this length have finished with {metric}"
        )
    from harness.reporting.formats.numbers import points, value

    size, low, high = (value(metric, one) for one in (found.size, found.low, found.high))
    how = f"{size}{points(metric)} in {metric} ({low} to {high}; from {plural(found.arms, 'finished arm')})"
    return f"{seeds} can tell a difference of about {how}"


def _can_tell(planned: Plan, store: Store) -> Forecast | None:
    from harness.planning.estimate import finished_arms

    if not (finished := finished_arms(planned, store)):
        return None
    from harness.reporting.forecast import can_tell  # which loads numpy

    return can_tell(planned, finished)


def _cost_line(planned: Plan, store: Store, to_evaluate: int, timed: Mapping[str, float] | None) -> str:
    from harness.planning.estimate import estimate

    cost = estimate(planned, store, store.states(planned.runs), timed)
    parts = [f"{cost['runs_missing']} of {len(planned.runs)} runs to train"]
    if to_evaluate:
        parts.append(f"{to_evaluate} to evaluate")
    if cost["samples_missing"]:
        parts.append(f"{cost['samples_missing']:,} images")
    if cost["hours_missing"] is not None and cost["runs_missing"]:
        parts.append(f"about {seconds(cost['hours_missing'] * 3600)} of one worker ({cost['basis']})")
    elif cost["runs_missing"]:
        hint = "" if timed is not None else "; `--measure` times ten steps"
        rest = cost["runs_unknown"] if cost["hours_known"] else 0
        who, their = (f" of {plural(rest, 'run')}", "their") if rest else ("", "this")
        parts.append(f"time{who} not known: no run of {their} shape has finished{hint}")
        parts += [f"the others take about {seconds(cost['hours_known'] * 3600)} of one worker"] if rest else []
    return "; ".join(parts)
