"""`harness preview`: a gallery of an arm's first batches with the positives that mining finds."""

from __future__ import annotations

from pathlib import Path

from harness.base.errors import SpecError
from harness.config.explain import nearest
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.request import Request


def preview(plan: Plan, project: Project, arm: str | None, batches: int, out: Path) -> Path:
    """Mine the first batches of an arm's first run, and write the gallery.

    Args:
        arm: its name; default: the first arm that mines.

    Raises:
        SpecError: there is no such arm, it does not mine, or its teacher has not been trained.
    """
    run = _mining_run(plan, arm)
    if run.teacher is not None and not project.store.run(run.teacher).weights.exists():
        fix = "`harness run` trains it first"
        raise SpecError(f"the teacher, run {run.teacher}, has not been trained", where=plan.name, fix=fix)
    request = Request.of(run.experiment, run.id, run.teacher, project.settings, threads=1)
    path = out / f"{plan.name}-preview.html"
    _write(path, request, batches, project.store.run(run.id))
    return path


def _mining_run(plan: Plan, arm: str | None) -> PlannedRun:
    mining = [one.name for one in plan.arms if one.experiment.mining.mines]
    if not mining:
        raise SpecError("no arm mines", where=plan.name, fix='give one mining.kind = "threshold"')
    if arm is not None and arm not in mining:
        raise SpecError(f"no arm {arm!r} mines", where=plan.name, fix=nearest(arm, mining))
    return plan.runs[next(iter(plan.ids(arm or mining[0]).values()))]


def _write(path: Path, request: Request, count: int, folder: RunFolder) -> None:
    from harness.data.dataset.dataset import open_dataset
    from harness.data.sources.inspection import inspect_data
    from harness.mining.preview import write_preview
    from harness.models import build_towers
    from harness.node.preview import leave_gallery, mining_of, preview_batch

    experiment = request.experiment
    dataset = open_dataset(experiment.data, request.stored.data)
    fingerprint = inspect_data(experiment.data, request.stored.data).fingerprint
    towers = build_towers(experiment.model)
    source, miner = mining_of(request, experiment, dataset, fingerprint, towers)
    first = zip(source.batches(0), range(count), strict=False)
    write_preview(path, [preview_batch(source, miner, batch) for batch, _ in first])
    if folder.spec.exists():  # for the run's reports
        leave_gallery(request, dataset, fingerprint, towers, folder)
