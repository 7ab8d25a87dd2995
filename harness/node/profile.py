"""`harness profile`: measure where the time of an arm's training steps goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.base.errors import SpecError
from harness.config.explain import nearest
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.planned import PlannedRun
from harness.runs.request import Request

WARM = 2
"""Number of warm-up steps before the measurement."""


def profile(plan: Plan, project: Project, arm: str | None, steps: int, trace: Path | None) -> str:
    """Train an arm's first run for a few steps in this process; returns a table of where the time went.

    Nothing is written to the run's folder.

    Args:
        arm: the arm's name; default: the baseline.
        steps: number of steps to measure, after two warm-up steps.
        trace: file for a trace of the measured steps' operations, for chrome://tracing or ui.perfetto.dev.

    Raises:
        SpecError: there is no such arm, or its teacher has not been trained.
    """
    name = arm or plan.ablation.baseline
    if not (ids := plan.ids(name)):
        raise SpecError(
            f"there is no arm {name!r}", where=plan.name, fix=nearest(name, [one.name for one in plan.arms])
        )
    return _table(*_measure(_request(plan, project, plan.runs[next(iter(ids.values()))], steps), steps, trace))


def step_seconds(plan: Plan, project: Project, run: PlannedRun, steps: int = 10) -> float:
    """Seconds of a training step of `run` on this machine, from a few steps. Nothing is written to its folder.

    Raises:
        SpecError: its teacher has not been trained, or it has too few steps.
    """
    _, whole, measured, _ = _measure(_request(plan, project, run, steps), steps, None)
    return whole / measured


def _request(plan: Plan, project: Project, run: PlannedRun, steps: int) -> Request:
    if run.teacher is not None and not project.store.run(run.teacher).weights.exists():
        fix = "train it first with `harness run`"
        raise SpecError(f"the teacher, run {run.teacher}, has not been trained", where=plan.name, fix=fix)
    if run.steps < WARM + steps:
        fix = f"use --steps {max(run.steps - WARM, 1)}"
        raise SpecError(f"the run takes {run.steps} steps, too few to profile {steps}", where=plan.name, fix=fix)
    return Request.of(run.experiment, run.id, run.teacher, project.settings, threads=1)


def _measure(
    request: Request, steps: int, trace: Path | None
) -> tuple[dict[str, float], float, int, Mapping[str, float]]:
    """Seconds of each part of a step, seconds of all, number of steps, and speeds."""
    from contextlib import nullcontext
    from itertools import islice

    import torch

    from harness.base.machine import cores
    from harness.data.dataset.dataset import open_dataset
    from harness.data.sources.inspection import inspect_data
    from harness.models import build_towers
    from harness.models.fitting import choose_device
    from harness.node.assemble import Assembler
    from harness.parallel.process_group import World
    from harness.training.checkpoint import TrainingProgress
    from harness.training.step_timer import PartsTimer

    experiment = request.experiment
    torch.set_num_threads(cores())
    device = choose_device(experiment.resources, 0)
    towers = build_towers(experiment.model, seed=experiment.seed).to(device)
    data, clock = request.stored.data, PartsTimer(device)
    fingerprint = inspect_data(experiment.data, data).fingerprint
    assembler = Assembler(request, open_dataset(experiment.data, data), fingerprint, towers, World(), clock)
    trainer, _ = assembler.build()
    trainer.calibrate()
    taken = trainer.run(TrainingProgress(0, 0.0, 1))
    for _ in islice(taken, WARM):
        pass
    clock.seconds.clear()
    trainer.speed.read()
    operations = torch.profiler.profile() if trace is not None else None
    with operations or nullcontext():
        at = [step.at for step in islice(taken, steps)]
    if operations is not None and trace is not None:
        operations.export_chrome_trace(str(trace))
    speed = trainer.speed.read()
    whole = steps * experiment.train.global_batch_size / speed["images_per_s"]
    return clock.seconds, whole, len(at), speed


def _table(seconds: dict[str, float], whole: float, steps: int, speed: Mapping[str, float]) -> str:
    """The parts of a step, longest first."""
    rows = [*sorted(seconds.items(), key=lambda part: -part[1]), ("the rest", whole - sum(seconds.values()))]
    lines = [f"{'part of a step':<24}{'ms':>10}{'share':>8}"]
    lines += [f"{name:<24}{1000 * one / steps:>10.1f}{one / whole:>8.1%}" for name, one in rows]
    lines.append(f"{'all':<24}{1000 * whole / steps:>10.1f}{1:>8.1%}")
    lines += ["", *(f"{name}: {value:,.3g}" for name, value in speed.items())]
    return "\n".join(lines)
