"""From an ablation to the runs it needs: arms x seeds, teachers first, each run once whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from harness.errors import SpecError
from harness.identity import Identity, identify, teacher_id
from harness.record import DataReport
from harness.spec.ablation import Ablation
from harness.spec.data import Data
from harness.spec.experiment import Experiment, ExperimentTeacher, flatten
from harness.spec.explain import explain
from harness.spec.overrides import expand, merge

Inspect = Callable[[Data], DataReport]
"""Tells what a data set holds; `harness.data.inspect_data` with its cache."""


@dataclass(frozen=True)
class Arm:
    """A variant: its name and its experiment."""

    name: str
    label: str
    experiment: Experiment
    changes: Mapping[str, Any]
    """What it changes in the base: dotted path to value."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan."""

    identity: Identity
    experiment: Experiment
    """With the seed of this run."""
    role: str
    """`arm`, or `teacher` where only other runs need it."""
    teacher: str | None
    """Id of the run whose checkpoint teaches this one: it has to be done first."""
    steps: int
    """Optimiser steps that it will take; 0 where its data is missing."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.identity.id


@dataclass
class Plan:
    """Every run of an ablation, in an order in which teachers come first."""

    name: str
    ablation: Ablation
    arms: tuple[Arm, ...]
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    """By id."""
    cells: dict[tuple[str, int], str] = field(default_factory=dict)
    """Id by (arm, seed)."""
    data: dict[str, DataReport] = field(default_factory=dict)
    """What each data set holds, by fingerprint."""

    @property
    def missing_data(self) -> tuple[str, ...]:
        """What keeps data sets from being looked at; empty unless the plan is provisional."""
        return tuple(report.missing for report in self.data.values() if report.missing)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def ids(self, arm: str) -> dict[int, str]:
        """Ids of an arm's runs by seed."""
        return {seed: run for (name, seed), run in self.cells.items() if name == arm}

    def differences(self, arm: str) -> dict[str, tuple[Any, Any]]:
        """All fields that can change a result and differ from the baseline: dotted path to (baseline, arm)."""
        ours, theirs = (
            flatten(self.arm(name).experiment.science(defaults=True)) for name in (arm, self.ablation.baseline)
        )
        return {
            path: (theirs.get(path), ours.get(path))
            for path in sorted(ours.keys() | theirs.keys())
            if ours.get(path) != theirs.get(path)
        }


def make_plan(ablation: Ablation, *, name: str, where: str, inspect: Inspect) -> Plan:
    """The plan of `ablation`.

    Args:
        name: what the ablation is called (its file's stem); names its MLflow experiment and its reports.
        where: its file, for messages.
        inspect: tells what a data set holds.

    Raises:
        SpecError: an arm is no valid experiment, two arms are the same run, a batch is larger than the data.
        DataError: a data set cannot be read.
    """
    plan = Plan(name, ablation, tuple(resolve_arms(ablation, where)))
    planner = _Planner(plan, inspect, where)
    for arm in plan.arms:
        for seed in ablation.seed_list:
            run = planner.add(_seeded(arm.experiment, seed), "arm")
            planner.claim(arm.name, seed, run)
    return plan


def resolve_arms(ablation: Ablation, where: str) -> Iterator[Arm]:
    """Every arm as a validated experiment.

    Raises:
        SpecError: an arm sets a field that does not exist, or a value that is not allowed.
    """
    base = ablation.experiment.model_dump(mode="json")
    shared = expand(ablation.base)
    for name, table in ablation.variants():
        prefix = f"arms.{name}." if name in ablation.arms else f"[{name}] "
        changes = merge(shared, table)
        try:
            experiment = Experiment.model_validate(merge(base, changes))
        except ValidationError as error:
            raise explain(error, Experiment, where=where, prefix=prefix) from None
        yield Arm(name, ablation.labels.get(name, name), experiment, flatten(table))


class _Planner:
    """Adds runs to a plan, teachers first, each id once."""

    def __init__(self, plan: Plan, inspect: Inspect, where: str) -> None:
        self.plan, self.where = plan, where
        self._inspect = inspect
        self._reports: dict[str, DataReport] = {}

    def add(self, experiment: Experiment, role: str) -> PlannedRun:
        teacher = None
        if experiment.uses_teacher and isinstance(experiment.teacher, ExperimentTeacher):
            teacher = self.add(experiment.teacher.experiment, "teacher").id
        report = self._report(experiment.data)
        taught_by = teacher_id(experiment, teacher)
        identity = identify(experiment, fingerprint=report.fingerprint, teacher=taught_by)
        known = self.plan.runs.get(identity.id)
        if known is None or (role == "arm" and known.role == "teacher"):
            steps = 0 if report.missing else steps_of(experiment, report.samples, self.where)
            self.plan.runs[identity.id] = PlannedRun(identity, experiment, role, teacher, steps)
        return self.plan.runs[identity.id]

    def claim(self, arm: str, seed: int, run: PlannedRun) -> None:
        same = [name for (name, _), other in self.plan.cells.items() if other == run.id]
        if same:
            fix = "remove one of them, or change a field that matters"
            if self.plan.ablation.axes:
                fix = "leave one out with `exclude`"
            raise SpecError(f"arms {same[0]!r} and {arm!r} are the same run", where=self.where, fix=fix)
        self.plan.cells[(arm, seed)] = run.id

    def _report(self, data: Data) -> DataReport:
        key = data.model_dump_json()
        if key not in self._reports:
            self._reports[key] = self._inspect(data)
        report = self._reports[key]
        self.plan.data[report.fingerprint] = report
        return report


def _seeded(experiment: Experiment, seed: int) -> Experiment:
    return Experiment.model_validate({**dict(experiment), "seed": seed})


def steps_of(experiment: Experiment, samples: int, where: str) -> int:
    """How many optimiser steps `experiment` takes on `samples` training samples.

    Raises:
        SpecError: there are fewer samples than one batch, or the duration is shorter than a step.
    """
    train = experiment.train
    if samples < train.global_batch_size:
        what = f"the data has {samples} samples, fewer than one batch of {train.global_batch_size}"
        raise SpecError(what, where=f"{where}: train.global_batch_size", fix="make the batch smaller")
    steps = train.duration.steps(samples_per_epoch=samples, global_batch_size=train.global_batch_size)
    if steps < 1:
        what = f"{train.duration} is less than one step"
        raise SpecError(what, where=f"{where}: train.duration", fix="train for longer")
    return steps
