"""Print plans and states as tables: with rich on a terminal, as plain aligned lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.execute.life import Life
from harness.planning import claims
from harness.planning.isolation import confounded, isolation
from harness.planning.plan import Plan
from harness.runs.request import read_request
from harness.runs.store import RunFolder, Store

WATCH_S = 2.0


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(title=title, title_justify="left")
        for name in header:
            drawn.add_column(name)
        for row in rows:
            drawn.add_row(*row)
        Console().print(drawn)
        return
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    print(title)
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def plan(planned: Plan, store: Store) -> None:
    """Print the arms, their changes, and the states of their runs."""
    from harness.execute.status import planned_states

    states = planned_states(planned, store)
    users = Counter(planned.cells.values())
    rows = []
    for arm in planned.arms:
        ids = planned.ids(arm.name)
        counted = Counter(states[run] for run in ids.values())
        changes = ", ".join(f"{path}={value}" for path, value in arm.changes.items()) or "nothing"
        first = planned.runs[next(iter(ids.values()))]
        steps = str(first.steps) if first.steps else "?"
        done = ", ".join(f"{number} {state}" for state, number in sorted(counted.items()))
        rows.append([arm.name, str(len(ids)), steps, done, changes])
    table(f"{planned.name}: {planned.ablation.question}", ["arm", "seeds", "steps", "runs", "changes"], rows)
    teachers = [run for run in planned.runs if run not in users]
    for run in teachers:
        print(f"teacher {run}: {planned.runs[run].steps} steps, {states[run]}")
    print(_cost_line(planned, store, sum(state is Life.TRAINED for state in states.values())))
    for reason in planned.missing_data:
        print(f"missing: {reason}")
    for warning in confounded(planned.ablation, planned.experiments):
        print(f"confounded: {warning}")


def note_claims(planned: Plan, store: Store) -> None:
    """Note when the claims were first planned. A store that cannot be written is said, and hinders no plan."""
    try:
        claims.note_claims(planned, store)
    except StoreError as error:
        print(f"harness: it is not noted when the claims were planned: {error}", file=sys.stderr)


def say_census(planned: Plan) -> None:
    """Print what each data set is read as and what is left out of it, wherever anything is left out or guessed."""
    for fingerprint, report in planned.data.items():
        for sentence in report.census():
            print(f"data {fingerprint[:12]}: {sentence}")


def plan_json(planned: Plan, store: Store) -> dict[str, Any]:
    """The plan as JSON data."""
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
        "cost": estimate(planned, store, store.states(planned.runs)),
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


def seconds(duration: float) -> str:
    """Format a duration for display: `45 s`, `12 min`, `3.5 h`."""
    if duration < 90:
        return f"{duration:.0f} s"
    return f"{duration / 60:.0f} min" if duration < 5400 else f"{duration / 3600:.1f} h"


def _cost_line(planned: Plan, store: Store, to_evaluate: int) -> str:
    from harness.planning.estimate import estimate

    cost = estimate(planned, store, store.states(planned.runs))
    parts = [f"{cost['runs_missing']} of {len(planned.runs)} runs to train"]
    if to_evaluate:
        parts.append(f"{to_evaluate} to evaluate")
    if cost["samples_missing"]:
        parts.append(f"{cost['samples_missing']:,} images")
    if cost["hours_missing"] is not None and cost["runs_missing"]:
        parts.append(f"about {seconds(cost['hours_missing'] * 3600)} of one worker ({cost['basis']})")
    return "; ".join(parts)
