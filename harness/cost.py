"""What a plan will cost, judged by what finished runs of the same shape took."""

from __future__ import annotations

from statistics import median
from typing import Any

from harness.identity import digest
from harness.plan import Plan
from harness.request import Request
from harness.spec.experiment import Experiment
from harness.store import State, Store


def estimate(plan: Plan, store: Store) -> dict[str, Any]:
    """Runs and images still to train, and hours of one worker; `hours_missing` is None where nothing is comparable.

    A step's time depends on towers, batch, captions per image, mining and machine: runs that share the first four
    are taken as comparable, the nearest otherwise being no estimate at all.
    """
    missing = [run for run in plan.runs.values() if store.run(run.id).state() is not State.DONE]
    measured = _seconds_per_step(plan, store) if missing else {}
    known = [measured[_shape(run.experiment)] * run.steps for run in missing if _shape(run.experiment) in measured]
    rest = len(missing) - len(known)
    complete = bool(known) and rest <= len(known)
    total = sum(known) * (len(missing) / len(known)) if complete else None
    return {
        "runs": len(plan.runs),
        "runs_missing": len(missing),
        "samples_missing": sum(run.steps * run.experiment.train.global_batch_size for run in missing),
        "hours_missing": None if total is None else total / 3600,
        "basis": "nothing comparable has run yet" if total is None else "judged by finished runs of the same shape",
    }


def _shape(experiment: Experiment) -> str:
    return digest(
        {
            "model": experiment.model.science(),
            "batch": experiment.train.global_batch_size,
            "captions": experiment.captions.per_image,
            "taught": experiment.uses_teacher,
            "data": experiment.data.kind,
        }
    )


def _seconds_per_step(plan: Plan, store: Store) -> dict[str, float]:
    wanted = {_shape(run.experiment) for run in plan.runs.values()}
    found: dict[str, list[float]] = {}
    for folder in store.runs():
        if folder.state() is not State.DONE:
            continue
        request = Request.model_validate_json(folder.request.read_text(encoding="utf-8"))
        shape = _shape(request.experiment)
        if shape in wanted:
            record = folder.record()
            found.setdefault(shape, []).append(record.cost.duration_s / max(record.steps, 1))
    return {shape: median(times) for shape, times in found.items()}
