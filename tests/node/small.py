"""A world and recipe so small that a run takes a second, planned and prepared like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.data.synthetic.materialise import materialise
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.request import Request
from harness.runs.settings import Settings
from harness.runs.store import Store

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
DATA = {"kind": "shapes", "train_samples": 96, "test_samples": 36}
STEPS = 8
TIMINGS = frozenset({"images_per_s", "data_wait", "mfu", "peak_memory_gb"})
"""Metrics that two runs of one id do not share."""


def experiment(**changes: Any) -> Experiment:
    """A small experiment; `changes` replace whole tables."""
    model = {"name": "small", "config": CONFIG}
    train = {"duration": f"{STEPS} steps", "global_batch_size": 16, "optimiser": {"lr": 1e-2}}
    teacher = {
        "data": DATA,
        "model": model,
        "train": train | {"duration": "4 steps"},
        "captions": {"source": "captioner", "count": 2},
    }
    base: dict[str, Any] = {
        "data": DATA,
        "model": model,
        "train": train,
        "captions": {"source": "captioner", "count": 0},
        "teacher": {"kind": "experiment", "experiment": teacher},
        "evaluation": {"sets": ("shapes", "shapes_retrieval")},
        "resources": {"log_every": 1},
    }
    return Experiment.model_validate(base | changes)


def project(root: Path) -> Project:
    """A project whose store lies under `root`, without MLflow."""
    settings = Settings(store=root / "store", tracking_uri="none")
    return Project(settings, Store(settings.store))


def planned(root: Path, one: Experiment) -> tuple[Plan, PlannedRun]:
    """The plan of an experiment alone, and its run."""
    ablation = Ablation(
        question="?", experiment=one, baseline="a", arms={"a": {}}, seeds=(one.seed,), primary="shapes/acc1"
    )
    plan = project(root).plan(ablation)
    return plan, plan.runs[plan.cells["a", one.seed]]


def prepared(root: Path, run: PlannedRun) -> RunFolder:
    """The run's folder, ready for a worker, with its data generated."""
    here = project(root)
    materialise(run.experiment.data, here.store.data)
    folder = here.store.run(run.id)
    request = Request.of(run.experiment, run.id, run.teacher, here.settings, 1)
    folder.prepare(run.identity, request.model_dump(mode="json"))
    return folder
