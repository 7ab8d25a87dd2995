"""Plan the runs of an ablation: arms x seeds, teachers first, and each run once even if several arms need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.base.errors import SpecError, together
from harness.config.ablation import Ablation
from harness.config.data import Data
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher, flatten, unknown_teacher
from harness.config.explain import hinted, nearest, problems, sentence
from harness.config.overrides import expand, laid_over
from harness.planning.isolation import check_claims
from harness.planning.looks import InterimLook, looks_key
from harness.runs.identity import digest, identify, teacher_id
from harness.runs.planned import PlannedRun
from harness.runs.record import DataReport
from harness.runs.settings import Settings

Inspect = Callable[[Data], DataReport]
"""Reports the contents of a data set; `harness.data.inspect_data` with its cache."""
ReadLooks = Callable[[str], Sequence[InterimLook]]
"""Returns the looks so far of the ablation with this key."""


@dataclass(frozen=True)
class Arm:
    """A variant: its name and its experiment."""

    name: str
    label: str
    experiment: Experiment
    changes: Mapping[str, Any]
    """Its changes to the base: dotted path to value."""


@dataclass
class Plan:
    """Every run of an ablation, with teachers before their students."""

    name: str
    ablation: Ablation
    arms: tuple[Arm, ...]
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    """Runs by id."""
    cells: dict[tuple[str, int], str] = field(default_factory=dict)
    """Run ids by (arm, seed)."""
    data: dict[str, DataReport] = field(default_factory=dict)
    """Contents of each data set, by fingerprint."""
    settings: Settings = field(default_factory=Settings)
    """Settings of the project in which the plan was made; they name its store."""
    file: Path | None = None
    """The spec's file, if it has one."""
    assignments: tuple[str, ...] = ()
    """The assignments that were laid over the spec."""
    left_out: frozenset[str] = frozenset()
    """Runs of the ablation that this part of its plan does not have."""
    looks: tuple[InterimLook, ...] = ()
    """The looks at its claims so far, if its seeds are added on demand."""
    looks_key: str = ""
    """Their folder."""

    def part(self, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Plan:
        """The plan with the runs of these arms and seeds, and their teachers, alone. Empty: all of them.

        Raises:
            SpecError: there is no such arm or seed.
        """
        where = str(self.file or self.name)
        for arm in arms:
            if arm not in self._by_name:
                raise SpecError(f"there is no arm {arm!r}", where=where, fix=nearest(arm, self._by_name))
        planned = dict.fromkeys(seed for _, seed in self.cells)
        for seed in seeds:
            if seed not in planned:
                known = ", ".join(map(str, planned))
                raise SpecError(f"there is no seed {seed}", where=where, fix=f"its seeds are {known}")
        cells = {
            (arm, seed): run
            for (arm, seed), run in self.cells.items()
            if (not arms or arm in arms) and (not seeds or seed in seeds)
        }
        wanted = set(cells.values())
        while ahead := {teacher for run in wanted if (teacher := self.runs[run].teacher)} - wanted:
            wanted |= ahead
        runs = {run: one for run, one in self.runs.items() if run in wanted}
        return replace(self, cells=cells, runs=runs, left_out=frozenset(self.runs.keys() - wanted))

    @property
    def origin(self) -> str:
        """Which spec this is: a digest of its file and assignments; empty for a spec made in Python."""
        return digest([str(self.file.resolve()), list(self.assignments)]) if self.file is not None else ""

    @property
    def command(self) -> str:
        """The name under which commands that carry it out are registered, unique even if two specs share a name."""
        return f"{self.name}@{self.origin}" if self.origin else self.name

    @property
    def missing_data(self) -> tuple[str, ...]:
        """Why data sets could not be inspected; empty unless the plan is provisional."""
        return tuple(report.missing for report in self.data.values() if report.missing)

    def arm(self, name: str) -> Arm:
        """The arm with this name."""
        return self._by_name[name]

    def ids(self, arm: str) -> dict[int, str]:
        """Ids of an arm's runs by seed."""
        return {seed: self.cells[arm, seed] for seed in self.ablation.seed_list if (arm, seed) in self.cells}

    def differences(self, arm: str) -> dict[str, tuple[Any, Any]]:
        """All fields that can change a result and differ from the baseline: dotted path to (baseline, arm)."""
        ours, theirs = self.arm(arm).experiment.science(defaults=True), self._baseline
        sections = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
        arms, baselines = (flatten({name: side[name] for name in sections if name in side}) for side in (ours, theirs))
        return {
            path: (baselines.get(path), arms.get(path))
            for path in sorted(arms.keys() | baselines.keys())
            if arms.get(path) != baselines.get(path)
        }

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """The experiment of each arm."""
        return {arm.name: arm.experiment for arm in self.arms}

    @cached_property
    def _by_name(self) -> dict[str, Arm]:
        return {arm.name: arm for arm in self.arms}

    @cached_property
    def _baseline(self) -> dict[str, Any]:
        return self.arm(self.ablation.baseline).experiment.science(defaults=True)


def make_plan(
    ablation: Ablation, *, name: str, where: str, inspect: Inspect, read_looks: ReadLooks = lambda _key: ()
) -> Plan:
    """Plan the runs of `ablation`.

    Args:
        name: the ablation's name (its file's stem), also used for its MLflow experiment and its reports.
        where: the ablation's file, for messages.
        inspect: reports the contents of a data set.

    Raises:
        SpecError: an arm is not a valid experiment, two arms are the same run, a claim cannot be about what it says, or
            a batch is larger than the data.
        DataError: a data set cannot be read.
    """
    plan = Plan(name, ablation, tuple(resolve_arms(ablation, where)))
    check_claims(ablation, plan.experiments, where)
    planner = Planner(plan, inspect)
    owners: dict[str, str] = {}

    def add(arm: Arm, seeds: Sequence[int]) -> None:
        for seed in seeds:
            run = planner.add(_seeded(arm.experiment, seed), "arm", f"{where}: arm {arm.name!r}")
            if owners.setdefault(run.id, arm.name) != arm.name:
                fix = "leave one out with `exclude`, or" if ablation.axes else "remove one of them, or"
                what = f"arms {owners[run.id]!r} and {arm.name!r} are the same run"
                raise SpecError(what, where=where, fix=f"{fix} change a field that can change a result")
            plan.cells[arm.name, seed] = run.id

    demand = ablation.on_demand
    for arm in plan.arms:
        add(arm, range(demand.least) if demand else ablation.seed_list)
    if demand is None:
        return plan
    plan.looks_key = looks_key(ablation, list(plan.cells.values()))
    plan.looks = tuple(read_looks(plan.looks_key))
    for arm in plan.arms:
        add(arm, range(demand.least, max([demand.least, *(look.more.get(arm.name, 0) for look in plan.looks)])))
    plan.cells = {(arm.name, seed): run for arm in plan.arms for seed, run in plan.ids(arm.name).items()}
    return plan


def resolve_arms(ablation: Ablation, where: str) -> Iterator[Arm]:
    """Yield every arm with its validated experiment.

    Raises:
        SpecError: arms set a field that does not exist, or a value that is not allowed.
    """
    shared = expand(ablation.base)
    wrong: list[SpecError] = []
    for name, table in ablation.variants():
        try:
            experiment = laid_over(ablation.experiment, shared, table)
        except ValidationError as error:
            wrong += _blame(ablation, name, error, where)
            continue
        yield Arm(name, ablation.labels.get(name, name), experiment, flatten(table))
    if wrong:
        raise together(wrong)


def _blame(ablation: Ablation, name: str, error: ValidationError, where: str) -> Iterator[SpecError]:
    """The problems of the arm `name`, each with the key of the ablation's file that causes it."""
    try:
        laid_over(ablation.experiment, expand(ablation.base))
        shared = []
    except ValidationError as of_base:
        shared = problems(of_base, Experiment)
    for problem in problems(error, Experiment):
        axis = next((path for path in ablation.axes if _share_a_key(path, problem.key)), None)
        if problem in shared:
            yield sentence(problem, where=where, prefix="base.")
        elif axis is not None:
            yield sentence(replace(problem, key=axis), where=where, prefix="axes.")
        else:
            prefix = f"arms.{name}." if name in ablation.arms else f"arm {name!r}: "
            yield sentence(hinted(problem, Ablation, " at the top of the file"), where=where, prefix=prefix)


def _share_a_key(path: str, key: str) -> bool:
    """Whether two dotted paths are equal or one contains the other."""
    return (bool(key) and (f"{path}.").startswith(f"{key}.")) or f"{key}.".startswith(f"{path}.")


class Planner:
    """Adds runs to a plan, teachers first, each id once.

    Arms share the objects of the sections that they do not change, so results are cached by object identity.
    """

    def __init__(self, plan: Plan, inspect: Inspect) -> None:
        self.plan = plan
        self._inspect = inspect
        self._teachers: dict[int, tuple[Experiment, str]] = {}
        self._reports: dict[int, tuple[Data, DataReport]] = {}
        self._inspected: dict[str, DataReport] = {}

    def add(self, experiment: Experiment, role: str, where: str) -> PlannedRun:
        """Add the run of `experiment` to the plan, after its teacher; returns the run.

        Raises:
            SpecError: a batch is larger than the data, or the duration is shorter than a step.
            DataError: its data cannot be read.
        """
        report = self._report(experiment.data)
        teacher = self._teacher(experiment, where)
        identity = identify(experiment, fingerprint=report.fingerprint, teacher=teacher_id(experiment, teacher))
        known = self.plan.runs.get(identity.id)
        if known is None or (role == "arm" and known.role == "teacher"):
            steps = 0 if report.missing else steps_of(experiment, report.samples, where)
            if not report.missing:
                _check_sources(experiment, report, where)
            self.plan.runs[identity.id] = PlannedRun(identity, experiment, role, teacher, steps)
        return self.plan.runs[identity.id]

    def _teacher(self, experiment: Experiment, where: str) -> str | None:
        if experiment.teacher is None or not experiment.uses_teacher:
            return None
        match experiment.teacher:
            case ExperimentTeacher(experiment=teacher):
                return self._trained_first(teacher, where)
            case OpenClipTeacher():
                return None
            case _:
                raise unknown_teacher(experiment.teacher)

    def _trained_first(self, teacher: Experiment, where: str) -> str:
        """The id of a teacher's run, which comes into the plan."""
        if id(teacher) not in self._teachers:
            self._teachers[id(teacher)] = (teacher, self.add(teacher, "teacher", f"{where}: teacher.experiment").id)
        return self._teachers[id(teacher)][1]

    def _report(self, data: Data) -> DataReport:
        if id(data) not in self._reports:
            key = data.model_dump_json()
            if key not in self._inspected:
                self._inspected[key] = self._inspect(data)
            report = self._inspected[key]
            self._reports[id(data)] = (data, report)
            self.plan.data[report.fingerprint] = report
        return self._reports[id(data)][1]


def _seeded(experiment: Experiment, seed: int) -> Experiment:
    return experiment if experiment.seed == seed else laid_over(experiment, {"seed": seed})


def _check_sources(experiment: Experiment, report: DataReport, where: str) -> None:
    train, samples = experiment.train, {name: one.samples for name, one in report.sources.items()}
    try:
        train.batches.check_sources(samples, train.global_batch_size)
    except SpecError as error:
        raise SpecError(error.what, where=f"{where}: {error.where}", fix=error.fix) from None


def steps_of(experiment: Experiment, samples: int, where: str) -> int:
    """Number of optimiser steps of `experiment` on `samples` training samples.

    Raises:
        SpecError: there are fewer samples than one batch, the duration is shorter than a step, or the loss needs more.
    """
    train = experiment.train
    if samples < train.global_batch_size:
        what = f"the data has {samples} samples, fewer than one batch of {train.global_batch_size}"
        raise SpecError(what, where=f"{where}: train.global_batch_size", fix="make the batch smaller")
    steps = train.duration.steps(samples_per_epoch=samples, global_batch_size=train.global_batch_size)
    if steps < 1:
        what = f"{train.duration} is less than one step"
        raise SpecError(what, where=f"{where}: train.duration", fix="train for longer")
    try:
        experiment.loss.check_training(samples, steps * train.global_batch_size)
    except SpecError as error:
        raise SpecError(error.what, where=f"{where}: {error.where}", fix=error.fix) from None
    return steps
