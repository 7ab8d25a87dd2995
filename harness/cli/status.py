"""`harness status`: where every run stands, and what it has cost."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cli.output import WATCH_S, seconds, table
from harness.execute.slurm.gpu_hours import Used, held
from harness.execute.slurm.job_tracker import TrackedJob
from harness.planning.plan import Plan
from harness.runs.attempts import Attempt
from harness.runs.record import Record
from harness.runs.store import RunFolder, State, Store

HEADER = ["run", "arm", "seed", "state", "step", "left", "metric", "node", "attempts", "hours"]
TAIL_BYTES = 1 << 16
SKEW_S = 60.0
NOTHING = Used()


@dataclass(frozen=True)
class RunStatus:
    """One run's line."""

    run: str
    arm: str
    seed: str
    state: str
    step: str = ""
    left: str = ""
    metric: str = ""
    node: str = ""
    attempts: int = 0
    used: Used = NOTHING
    clock: float = 0.0
    """Seconds by which its node's clock is ahead of this one's, where that is seen."""

    def cells(self) -> list[str]:
        """The line of the table."""
        attempts = str(self.attempts) if self.attempts else ""
        return [
            *(self.run, self.arm, self.seed, self.state, self.step, self.left, self.metric, self.node, attempts),
            _hours(self.used),
        ]


def status(planned: Plan, store: Store) -> list[RunStatus]:
    """Print every run; returns what was printed."""
    from harness.cli.cluster import look

    places, notes = look(store)
    names = {run: (arm, str(seed)) for (arm, seed), run in planned.cells.items()}
    primary = planned.ablation.primary
    standings = [
        _standing(store.run(run), names.get(run, ("(teacher)", "")), primary, places.get(run)) for run in planned.runs
    ]
    counted = Counter(one.state.partition(":")[0].partition(" (")[0] for one in standings)
    title = f"{planned.name}: {', '.join(f'{number} {state}' for state, number in sorted(counted.items()))}"
    table(title, HEADER, [one.cells() for one in standings])
    for one in standings:
        if one.state.startswith(State.FAILED):
            print(f"{one.run}: {store.run(one.run).failure().message}")
    _ledger(standings, planned, store)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    _warn_of_clocks(standings)
    return standings


def watch(planned: Plan, store: Store) -> None:
    """Print the status again and again until every run is done or failed."""
    for _ in _looks():
        if all(one.state.startswith((State.DONE, State.FAILED)) for one in status(planned, store)):
            return


def watch_growing(plan: Callable[[], Plan], store: Store, grows: Callable[[], bool]) -> None:
    """Print the status again and again until nobody adds runs to the plan any more and none of them moves."""
    for _ in _looks():
        over = not grows()  # asked first: what the last one added is shown
        if not any(one.state.startswith((State.RUNNING, "pending")) for one in status(plan(), store)) and over:
            return


def _looks() -> Iterator[None]:
    """Each on a clean screen, less and less often."""
    pause = WATCH_S
    while True:
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        yield
        time.sleep(pause)
        pause = min(pause * 1.2, 15.0)  # each look is a squeue


def _standing(folder: RunFolder, name: tuple[str, str], primary: str, place: TrackedJob | None) -> RunStatus:
    arm, seed = name
    if place is None and not folder.path.is_dir():
        return RunStatus(folder.id, arm, seed, State.MISSING)
    attempts = folder.attempts.all()
    host = attempts[-1].start.host if attempts else ""
    state, at = _state(folder, place, attempts), folder.read_progress()
    running, record = state == State.RUNNING, folder.record() if state == State.DONE else None
    return RunStatus(
        folder.id,
        arm,
        seed,
        state,
        step=_step(record, at),
        left=_left(at) if running else "",
        metric=_metric(folder, record, primary),
        node=(place.job.node if place is not None and place.job is not None and running else host) or host,
        attempts=len(attempts),
        used=held(folder, attempts),
        clock=float(at.get("time", 0.0)) - time.time() if running else 0.0,
    )


def _state(folder: RunFolder, place: TrackedJob | None, attempts: Sequence[Attempt]) -> str:
    """The folder's word first, then the job's."""
    if folder.record_file.exists():
        return State.DONE
    job = place.job if place is not None else None
    if place is not None and (job is None or job.phase == "pending"):
        reason = f" ({job.reason})" if job is not None and job.reason not in ("", "None") else ""
        return f"pending{reason}"
    if job is not None and job.phase == "running":
        return State.RUNNING
    state = folder.state()
    if state is State.FAILED:
        return f"{state}: {folder.failure().cause}"
    ends = [attempt.end for attempt in attempts if attempt.end is not None]
    return f"{state} ({ends[-1].cause})" if state is not State.RUNNING and ends else state


def _step(record: Record | None, at: Mapping[str, Any]) -> str:
    if record is not None:
        return f"{record.steps} in {seconds(record.cost.duration_s)}"
    return f"{at['step']} of {at['steps']}" if at.keys() >= {"step", "steps"} else ""


def _left(at: Mapping[str, Any]) -> str:
    if not at.get("elapsed_s") or not at.get("step"):
        return ""
    return seconds((at["steps"] - at["step"]) * at["elapsed_s"] / at["step"])


def _metric(folder: RunFolder, record: Record | None, name: str) -> str:
    """The latest value of the primary metric."""
    if record is not None:
        metric = record.metric(name)
        return f"{metric.value:.4g}" if metric is not None else ""
    value = _last_logged(folder, name)
    return "" if value is None else f"{value:.4g}"


def _last_logged(folder: RunFolder, name: str) -> float | None:
    """From the end of metrics.jsonl, which may be long."""
    try:
        with folder.metrics.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(size - TAIL_BYTES, 0))
            lines = stream.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if name.encode() in line or name == "train/loss":
            try:
                values = json.loads(line)["values"]
                return float(values[name.removeprefix("train/")])
            except (ValueError, KeyError, TypeError):
                continue
    return None


def _hours(amount: Used) -> str:
    if amount.gpu_hours:
        return f"{amount.gpu_hours:.3g} GPU"
    return f"{amount.core_hours:.3g} core" if amount.core_hours else ""


def _ledger(standings: list[RunStatus], planned: Plan, store: Store) -> None:
    """Hours by arm, used and predicted; only where a scheduler lent them."""
    if not any(one.used.core_hours for one in standings):
        return
    from harness.planning.estimate import predicted_hours

    predicted = predicted_hours(planned, store)
    rows = []
    for arm in dict.fromkeys(one.arm for one in standings):
        some = [one for one in standings if one.arm == arm]
        spent = sum((one.used for one in some), NOTHING)
        known = [predicted[one.run] for one in some if one.run in predicted]
        done = sum(one.state == State.DONE for one in some)
        ahead = f"{sum(known):.3g}" if len(known) == len(some) else ""
        rows.append([arm, f"{done} of {len(some)}", f"{spent.gpu_hours:.3g}", f"{spent.core_hours:.3g}", ahead])
    total = sum((one.used for one in standings), NOTHING)
    rows.append(["all", "", f"{total.gpu_hours:.3g}", f"{total.core_hours:.3g}", ""])
    print()
    table("hours", ["arm", "done", "GPU-hours", "core-hours", "predicted hours"], rows)


def _warn_of_clocks(standings: list[RunStatus]) -> None:
    ahead = max(standings, key=lambda one: one.clock, default=None)
    if ahead is not None and ahead.clock > SKEW_S:
        what = f"the clock of {ahead.node or 'a node'} is {seconds(ahead.clock)} ahead of this machine's"
        print(f"warning: {what}: times here are off by that, results are not", file=sys.stderr)
