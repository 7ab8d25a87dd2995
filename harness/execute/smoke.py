"""A smoke test of an ablation: a few training steps of every arm in a store of its own, without evaluation."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from harness.base.files import unwritable
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher
from harness.config.overrides import laid_over
from harness.execute.executor import Progress
from harness.execute.run import Outcome, run
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store

STEPS = 3


def smoke(
    plan: Plan,
    project: Project,
    target: str,
    *,
    jobs: int | None = None,
    on_progress: Callable[[Plan, Progress], None] | None = None,
    stop: Event | None = None,
    verbose: bool = False,
) -> tuple[Outcome, Path | None]:
    """Train the first seed of every arm, and their teachers, for `STEPS` steps; nothing of the real runs is touched.

    Returns:
        The outcome, and the folder of the store with the logs, which is kept unless every run ended well.

    Raises:
        SpecError, DataError, DispatchError, StoreError: see `harness.execute.run.run`.
    """
    scratch = _scratch(project.store)
    settings = Settings.model_validate({**dict(project.settings), "store": scratch, "tracking_uri": "none"})
    there = Project(settings, Store(scratch, settings.evaluation_root))
    short = _short(plan, there)
    show = None if on_progress is None else partial(on_progress, short)
    outcome = run(short, there, target, jobs=jobs, on_progress=show, stop=stop, verbose=verbose)
    if not outcome:
        return outcome, scratch
    shutil.rmtree(scratch, ignore_errors=True)
    return outcome, None


def _short(plan: Plan, project: Project) -> Plan:
    arms = tuple(replace(arm, experiment=laid_over(arm.experiment, _brief(arm.experiment))) for arm in plan.arms)
    short = Plan(f"{plan.name}-smoke", plan.ablation, arms, settings=project.settings)
    planner = project.planner(short)
    for arm in arms:
        short.cells[arm.name, arm.experiment.seed] = planner.add(arm.experiment, "arm", arm.name).id
    return short


def _brief(experiment: Experiment) -> dict[str, Any]:
    """The changes that make an experiment and its teachers short."""
    train = {"duration": f"{STEPS} steps", "warmup": "0 steps", "cooldown": "0 steps"}
    changes: dict[str, Any] = {"train": train, "evaluation": {"sets": [], "every": None}}
    if changed := experiment.loss.brief(experiment.train.global_batch_size):
        changes["loss"] = changed
    match experiment.teacher:
        case ExperimentTeacher(experiment=teacher):
            changes["teacher"] = {"experiment": _brief(teacher)}
        case OpenClipTeacher() | None:  # not trained
            pass
    return changes


def _scratch(store: Store) -> Path:
    """A new store below `store`, where the nodes of a cluster see it. It shares the data, which does not change."""
    try:
        store.begin()
        store.data.mkdir(parents=True, exist_ok=True)
        (store.root / "smoke").mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=store.root / "smoke"))
        (scratch / "data").symlink_to(store.data.resolve(), target_is_directory=True)
    except OSError as error:
        raise unwritable(store.root / "smoke", error) from error
    return scratch
