"""Estimate the cost of a plan from finished runs of the same shape, and find arms that tell of its noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from harness.base.errors import SpecError, StoreError
from harness.base.files import read_json
from harness.base.machine import PEAK_FLOPS
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder, State
from harness.runs.metrics import metric_id
from harness.runs.noted import NotedAblation, noted
from harness.runs.planned import PlannedRun
from harness.runs.request import shape
from harness.runs.store import Store

ENOUGH = 5
"""Number of finished runs that are read for each shape."""
ENOUGH_ARMS = 24
"""Number of finished arms whose noise is read."""
Finished: TypeAlias = Sequence[Mapping[str, Mapping[int, float]]]
"""Of ablations: values by arm and seed."""


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


@dataclass(frozen=True)
class Operations:
    """What the missing runs of a plan cost on a GPU, from their floating point operations."""

    gpu: str
    peak_flops: float
    """Dense half-precision peak of the GPU, in FLOP/s."""
    utilisation: float
    """Share of the peak that training is taken to reach."""
    tokens: int
    """Length of a caption."""
    flops: float
    """Floating point operations of all missing runs."""
    gpu_hours: float
    arms: Mapping[str, float]
    """GPU-hours of the missing runs of each arm. A run of several arms counts in each, a teacher in none."""
    sample_gflops: Mapping[str, float]
    """Operations on one image and its captions by arm, in GFLOP."""


def operations(
    plan: Plan,
    states: Mapping[str, State],
    sample_flops: Mapping[str, float],
    gpu: str,
    utilisation: float,
    tokens: int,
    samples: int | None,
) -> Operations:
    """GPU-hours of the missing runs: steps x batch x operations of a sample / (peak x utilisation).

    Args:
        sample_flops: operations of training on one image and its captions, by run id.
        gpu: a name of `PEAK_FLOPS`.
        tokens: length of the captions that were counted.
        samples: size of data sets that are not on this machine.

    Raises:
        SpecError: there is no such GPU, or a run's steps depend on data that is not here and `samples` is None.
    """
    name = next((name for name in PEAK_FLOPS if name.lower() == gpu.lower()), None)
    if name is None:
        raise SpecError(f"the peak of {gpu!r} is not known", where="--gpu", fix=f"known: {', '.join(PEAK_FLOPS)}")
    speed = PEAK_FLOPS[name] * utilisation
    flops = {
        run.id: sample_flops[run.id] * _steps(run, samples) * run.experiment.train.global_batch_size
        for run in plan.runs.values()
        if states[run.id] is not State.DONE
    }
    runs_of = {arm.name: plan.ids(arm.name).values() for arm in plan.arms}
    return Operations(
        gpu=name,
        peak_flops=PEAK_FLOPS[name],
        utilisation=utilisation,
        tokens=tokens,
        flops=sum(flops.values()),
        gpu_hours=sum(flops.values()) / speed / 3600,
        arms={arm: sum(flops.get(run, 0.0) for run in runs) / speed / 3600 for arm, runs in runs_of.items()},
        sample_gflops={arm: sample_flops[next(iter(runs))] / 1e9 for arm, runs in runs_of.items()},
    )


def _steps(run: PlannedRun, samples: int | None) -> int:
    """Steps of a run, also of one whose data is not here."""
    duration, batch = run.experiment.train.duration, run.experiment.train.global_batch_size
    if run.steps or duration.unit != "epochs":
        return run.steps or duration.steps(samples_per_epoch=0, global_batch_size=batch)
    if samples is None:
        what = f"{duration} of data that is not on this machine are an unknown number of steps"
        raise SpecError(what, where="train.duration", fix="give the size of the data with --samples")
    return duration.steps(samples_per_epoch=samples, global_batch_size=batch)


def finished_arms(plan: Plan, store: Store) -> Finished:
    """Values of the plan's primary metric in the store's ablations, of arms with as many steps and several seeds."""
    found: list[Mapping[str, Mapping[int, float]]] = []
    for one in noted(store):
        if sum(map(len, found)) < ENOUGH_ARMS and (table := _values(one, plan, store)):
            found.append(table)
    return found


def _values(noted: NotedAblation, plan: Plan, store: Store) -> dict[str, dict[int, float]]:
    """The primary metric's value by arm and seed, for arms with several seeds of one identity of the metric."""
    steps = {plan.runs[run].steps for run in plan.cells.values()}
    of, _, metric = plan.ablation.primary.partition("/")
    values: dict[str, dict[int, float]] = {}
    identities = set()
    for cell, run in noted.cells.items():
        arm, _, seed = cell.rpartition("/")
        if (arm not in values and len(values) >= ENOUGH_ARMS) or not store.run(run).record_file.exists():
            continue
        with suppress(StoreError):  # skip damaged runs: this is only an estimate
            record = store.run(run).record()
            ours = [one for one in record.evaluations if one.set == of and metric in one.metrics]
            if record.steps in steps and ours:
                values.setdefault(arm, {})[int(seed)] = ours[-1].metrics[metric].value
                identities.add(metric_id(ours[-1], metric))
    several = {arm: seeds for arm, seeds in values.items() if len(seeds) > 1}
    return several if len(several) > 1 and len(identities) == 1 else {}


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
