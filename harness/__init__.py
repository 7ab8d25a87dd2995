"""Declared ablations of CLIP-style pre-training: plan, run, compare.

    import harness

    ablation = harness.load("ablations/quickstart.toml")
    plan = harness.plan(ablation)
    harness.run(ablation, jobs=2)
    print(harness.report(ablation))

Specs are the models of `harness.config`; the command `harness` is a thin layer over the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.base.version import __version__

if TYPE_CHECKING:
    from harness.config.ablation import Ablation
    from harness.planning.plan import Plan

__all__ = ["__version__", "load", "plan", "report", "run"]


def load(path: str | Path, assignments: Sequence[str] = ()) -> Ablation:
    """The ablation in a TOML file, `assignments` (`"train.duration=300 steps"`) laid over its base experiment.

    Raises:
        harness.base.errors.SpecError: the file is missing or not valid.
    """
    from harness.config.load import load as load_file

    return load_file(path, assignments)


def plan(spec: str | Path | Ablation) -> Plan:
    """Every run that `spec` needs; see `harness.planning.plan.Plan`.

    Raises:
        harness.base.errors.HarnessError: the spec is not valid, or its data cannot be read.
    """
    from harness.planning.workspace import Project

    return Project.at(_folder(spec)).plan(spec)


def run(spec: str | Path | Ablation, *, on: str = "local", jobs: int | None = None) -> bool:
    """Train and evaluate every missing run once; whether all of them are done.

    Args:
        on: `local` (processes of this machine), `inline` (this process), or the file of a cluster profile.
        jobs: runs at a time on this machine.

    Raises:
        harness.base.errors.HarnessError: the spec is not valid, or its data cannot be read.
    """
    from harness.cli import cluster
    from harness.cli import run as running
    from harness.planning.workspace import Project

    project = Project.at(_folder(spec))
    plan = project.plan(spec)
    if cluster.is_profile(on):
        return cluster.carry_out(plan, project, cluster.sweep(plan, project, on, None, False))
    return running.carry_out(plan, project, running.workers(on, jobs, project.settings))


def report(
    spec: str | Path | Ablation, format: Literal["terminal", "md", "html", "latex", "csv", "json"] = "md"
) -> str:
    """The report on the records that are there, as text of that format.

    Raises:
        harness.base.errors.HarnessError: the spec is not valid, or a record is damaged.
    """
    from harness.planning.workspace import Project
    from harness.reporting import collect, render

    project = Project.at(_folder(spec))
    return render(collect(project.plan(spec), project.store), format)


def _folder(spec: str | Path | Ablation) -> Path | None:
    return Path(spec).parent if isinstance(spec, (str, Path)) else None
