"""`harness status`: the state and the cost of every run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness.cli.output import WATCH_S, say, seconds, table
from harness.execute.slurm.gpu_hours import Used
from harness.execute.status import NOTHING, ArmHours, RunStatus, hours, statuses
from harness.planning.plan import Plan
from harness.runs.metrics import is_share
from harness.runs.store import Store

HEADER = ["run", "arm", "seed", "state", "step", "left", "metric", "node", "attempts", "hours"]
OPTIONAL = ["attempts", "node", "hours", "run", "left"]
"""Columns that a narrow terminal does without."""
SKEW_S = 60.0


def status(planned: Plan, store: Store) -> list[RunStatus]:
    """Print the state of every run; returns the states."""
    found, notes = statuses(planned, store)
    counted = Counter(one.state.partition(":")[0].partition(" (")[0] for one in found)
    title = f"{planned.name}: {', '.join(f'{number} {state}' for state, number in sorted(counted.items()))}"
    primary = planned.ablation.primary
    header = [_heading(primary) if name == "metric" else name for name in HEADER]
    table(title, header, [_cells(one, primary) for one in found], OPTIONAL)
    for one in found:
        if one.failure:
            say(f"{one.run}: {one.failure}")
    _print_hours(hours(found, planned, store))
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    _warn_of_clocks(found)
    return found


def watch(plan: Callable[[], Plan], store: Store, grows: Callable[[], bool]) -> None:
    """Print the status repeatedly until no run is running or pending, and no command may begin further runs."""
    for _ in _refreshes():
        over = not grows()  # ask first, so that the last runs are still shown
        if not any(one.is_moving for one in status(plan(), store)) and over:
            return


def _refreshes() -> Iterator[None]:
    """Clear the screen before each refresh, at increasing intervals."""
    pause = WATCH_S
    while True:
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        yield
        time.sleep(pause)
        pause = min(pause * 1.2, 15.0)  # each refresh calls squeue


def status_json(planned: Plan, store: Store) -> tuple[dict[str, Any], list[RunStatus]]:
    """The states as JSON data, described by `harness.docs.outputs.StatusOutput`, and as they are."""
    found, notes = statuses(planned, store)
    runs = [
        {
            "run": one.run,
            "arm": one.arm,
            "seed": int(one.seed) if one.seed else None,
            "state": one.life.value,
            "detail": str(one.state),
            **{name: getattr(one, name) for name in ("step", "steps", "left_s", "duration_s", "metric", "node")},
            "attempts": one.attempts,
            "gpu_hours": one.used.gpu_hours,
            "core_hours": one.used.core_hours,
            "failure": one.failure,
        }
        for one in found
    ]
    states = Counter(one.life.value for one in found)
    data = {"name": planned.name, "primary": planned.ablation.primary, "states": dict(states)}
    return {**data, "runs": runs, "notes": list(notes)}, found


def _heading(primary: str) -> str:
    name = primary.rpartition("/")[2]
    return f"{name} (%)" if is_share(primary) else name


def _cells(one: RunStatus, primary: str) -> list[str]:
    left = "" if one.left_s is None else seconds(one.left_s)
    shown = None if one.metric is None else f"{100 * one.metric:.1f}" if is_share(primary) else f"{one.metric:.4g}"
    metric = shown or ""
    attempts = str(one.attempts) if one.attempts else ""
    return [one.run, one.arm, one.seed, one.state, _step(one), left, metric, one.node, attempts, _hours(one.used)]


def _step(one: RunStatus) -> str:
    if one.duration_s is not None:
        return f"{one.step} in {seconds(one.duration_s)}"
    return "" if one.step is None or one.steps is None else f"{one.step} of {one.steps}"


def _hours(amount: Used) -> str:
    if amount.gpu_hours:
        return f"{amount.gpu_hours:.3g} GPU"
    return f"{amount.core_hours:.3g} core" if amount.core_hours else ""


def _print_hours(arms: Sequence[ArmHours]) -> None:
    if not arms:
        return
    rows = [
        [
            one.arm,
            f"{one.done} of {one.runs}",
            f"{one.used.gpu_hours:.3g}",
            f"{one.used.core_hours:.3g}",
            "" if one.predicted is None else f"{one.predicted:.3g}",
        ]
        for one in arms
    ]
    total = sum((one.used for one in arms), NOTHING)
    rows.append(["all", "", f"{total.gpu_hours:.3g}", f"{total.core_hours:.3g}", ""])
    print()
    table("hours", ["arm", "done", "GPU-hours", "core-hours", "predicted hours"], rows)


def _warn_of_clocks(found: Sequence[RunStatus]) -> None:
    ahead = max(found, key=lambda one: one.clock, default=None)
    if ahead is not None and ahead.clock > SKEW_S:
        what = f"the clock of {ahead.node or 'a node'} is {seconds(ahead.clock)} ahead of this machine's"
        print(f"warning: {what}: times here are off by that, results are not", file=sys.stderr)
