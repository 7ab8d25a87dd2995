"""A table of real training for the search benchmark: the embedded world over a grid of settings.

Forty-five runs and their teacher: `python benchmarks/search_curves.py FOLDER` trains what is missing.
The runs are those of `search_world.toml`, carried out by `harness run`; the table is 1 - acc1 after every evaluation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.settings import Settings
from harness.runs.store import Store

SPEC = Path(__file__).with_suffix(".toml")
METRIC = "shapes/acc1"


def train(folder: Path) -> NDArray[np.float64]:
    """Carry out what is missing of the runs, in a store below `folder`; errors [lr, quantile, share, evaluation]."""
    store = Store(folder / "world_store")
    command = [sys.executable, "-m", "harness", "run", str(SPEC), "--jobs", "2"]
    settings = {"HARNESS_STORE": str(store.root.resolve()), "HARNESS_TRACKING_URI": "none"}
    subprocess.run(command, env=os.environ | settings, check=True)
    plan = Project(Settings(store=store.root), store).plan(SPEC)
    axes = plan.ablation.axes
    curves: dict[tuple[int, ...], list[float]] = {}
    for arm in plan.arms:
        cell = tuple(list(levels).index(arm.changes[path]) for path, levels in axes.items())
        (run,) = plan.ids(arm.name).values()
        curves[cell] = _errors(store.run(run))
    shape = tuple(len(levels) for levels in axes.values())
    return np.array([curves[cell] for cell in np.ndindex(*shape)]).reshape(*shape, -1)


def _errors(folder: RunFolder) -> list[float]:
    """After every evaluation; the one at the end stands in the record."""
    along = [line.values[METRIC] for line in folder.step_metrics() if METRIC in line.values]
    name, metric = METRIC.split("/")
    end = next(one.metrics[metric].value for one in folder.record().evaluations if one.set == name)
    return [1 - value for value in (*along, end)]
