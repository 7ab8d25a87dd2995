"""Estimate the cost of a plan from finished runs of the same shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import read_json
from harness.planning.plan import Plan
from harness.runs.planned import PlannedRun
from harness.runs.request import shape
from harness.runs.store import RunFolder, State, Store

ENOUGH = 5
"""Number of finished runs that are read for each shape."""


def estimate(
    plan: Plan, store: Store, states: Mapping[str, State], timed: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Runs and images still to train, and hours of one worker; `hours_missing` is None without comparable runs.

    Args:
        timed: seconds per step of shapes (`unknown`) that were timed now, and that no finished run has.

    A step's time depends on towers, batch, captions per image, mining and machine. Runs that share the first four count
    as comparable; other runs are not used, so there may be no estimate at all.
    """
    missing = [run for run in plan.runs.values() if states[run.id] is not State.DONE]
    shapes = {run.id: shape(run.experiment) for run in missing}
    done = [run for run in plan.runs.values() if states[run.id] is State.DONE]
    measured = _seconds_per_step(set(shapes.values()), done, store) if missing else {}
    by_runs, measured = measured, {**(timed or {}), **measured}
    known = [measured[shapes[run.id]] * run.steps for run in missing if shapes[run.id] in measured]
    rest = len(missing) - len(known)
    complete = bool(known) and rest <= len(known)
    total = sum(known) * (len(missing) / len(known)) if complete else None
    now = {shapes[run.id] for run in missing} & measured.keys() - by_runs.keys()
    basis = "from steps timed now" if now else "from finished runs of the same shape"
    return {
        "runs": len(plan.runs),
        "runs_missing": len(missing),
        "samples_missing": sum(run.steps * run.experiment.train.global_batch_size for run in missing),
        "hours_missing": None if total is None else total / 3600,
        "hours_known": sum(known) / 3600,
        "runs_unknown": rest,
        "basis": "no comparable run has finished yet" if total is None else basis,
    }


def unknown(plan: Plan, store: Store) -> dict[str, PlannedRun]:
    """A missing run of each shape that no finished run has, by shape."""
    states, known = store.states(plan.runs), predicted_hours(plan, store)
    missing = [run for run in plan.runs.values() if states[run.id] is not State.DONE and run.id not in known]
    return {shape(run.experiment): run for run in reversed(missing)}


def predicted_hours(plan: Plan, store: Store) -> dict[str, float]:
    """Predicted hours of each run whose shape has run before; runs with new shapes are left out."""
    states = store.states(plan.runs)
    shapes = {run.id: shape(run.experiment) for run in plan.runs.values()}
    done = [run for run in plan.runs.values() if states[run.id] is State.DONE]
    measured = _seconds_per_step(set(shapes.values()), done, store)
    return {
        run.id: measured[shapes[run.id]] * run.steps / 3600 for run in plan.runs.values() if shapes[run.id] in measured
    }


def _seconds_per_step(wanted: set[str], done: Sequence[PlannedRun], store: Store) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for name, folder in _finished(done, store):
        if name in found and len(found[name]) < ENOUGH:
            with suppress(StoreError):  # skip damaged runs: this is only an estimate
                record = folder.record()
                found[name].append(record.cost.duration_s / max(record.steps, 1))
        if all(len(times) >= ENOUGH for times in found.values()):
            break
    return {name: median(times) for name, times in found.items() if times}


def _finished(done: Sequence[PlannedRun], store: Store) -> Iterator[tuple[str, RunFolder]]:
    """Finished runs with their shapes. The plan's runs come first: their shapes are known without reading a file."""
    yield from ((shape(run.experiment), store.run(run.id)) for run in done)
    ours = {run.id for run in done}
    for folder in store.runs():
        if folder.id not in ours and folder.record_file.exists():
            yield _stated_shape(folder), folder


def _stated_shape(folder: RunFolder) -> str:
    try:
        request = read_json(folder.request)
    except StoreError:
        return ""
    return str(request.get("shape", "")) if isinstance(request, dict) else ""
