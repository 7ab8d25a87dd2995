"""Map configurations to runs and back: lengths, evaluation levels, objectives, and finished runs of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.base.boundary import reading
from harness.base.errors import HarnessError, SpecError, StoreError
from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.config.overrides import expand, laid_over
from harness.config.search import Choice, Parameter, Search
from harness.planning.evaluation_sets import EvaluationSets, Taken
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder, State
from harness.runs.planned import PlannedRun
from harness.runs.record import DataReport, Record
from harness.runs.request import read_request
from harness.searching.study import feasible_in

BASE = "base"


@dataclass(frozen=True)
class Known:
    """A configuration whose runs are all finished in the store."""

    values: dict[str, Any]
    final: tuple[float, ...]
    runs: tuple[str, ...]


class Configurations:
    """The runs of a search's configurations."""

    def __init__(self, search: Search, name: str, project: Project) -> None:
        self.search, self.name, self.project = search, name, project
        self.plan = self.empty_plan()
        self._planner = project.planner(self.plan)
        base = laid_over(search.experiment, expand(search.base))
        self._looked_at = self.empty_plan()
        self._scout = project.planner(self._looked_at)
        self.steps = self._scout.add(base, "arm", name).steps
        """Number of optimiser steps of a full run of the base."""
        self.length = self._length(base, self.steps)
        """Number of evaluations of a full run."""
        self._conditions = feasible_in(search)
        self._sets = EvaluationSets.of(project.store)
        self.left_out: list[str] = []
        """A sentence for each run of the store that could not be used."""

    @property
    def data(self) -> dict[str, DataReport]:
        """What the data sets of the base and of the configurations so far are, by fingerprint."""
        return self._looked_at.data | self.plan.data

    def empty_plan(self) -> Plan:
        """A plan without runs. Its ablation contains the base, and jobs of a cluster are named after the plan."""
        metric = self.search.objectives[0].metric
        base = {"question": self.search.question, "experiment": self.search.experiment, "base": self.search.base}
        ablation = Ablation.model_validate(
            {**base, "baseline": BASE, "arms": {BASE: {}}, "seeds": 1, "primary": metric}
        )
        return Plan(plan_name(self.name), ablation, ())

    def runs(self, values: Mapping[str, Any]) -> list[PlannedRun]:
        """Add the runs of a configuration and their teachers to the plan; returns the runs, one per seed."""
        experiments = [self.search.configured(values, seed) for seed in self.search.seed_list]
        return [self._planner.add(experiment, "arm", self.name) for experiment in experiments]

    def why_not(self, values: Mapping[str, Any]) -> str | None:
        """Why a configuration cannot be run; None if it can."""
        why = self._conditions(values)
        if why is not None or not self.search.pruner.decides_during_training:
            return why
        try:
            experiment = self.search.configured(values)
            steps = self._scout.add(experiment, "arm", self.name).steps
        except HarnessError as error:
            return str(error)
        length = self._length(experiment, steps)
        return None if length == self.length else f"a full run has {length} evaluations there, not {self.length}"

    def level_step(self, run: PlannedRun, level: int) -> int:
        """The optimiser step of evaluation `level`."""
        return min(level * self._every(run.experiment, run.steps), run.steps)

    def curve(self, run: PlannedRun, folder: RunFolder) -> dict[int, float]:
        """The first objective after each evaluation so far, by level; the last comes from the record."""
        metric, every = self.search.objectives[0].metric, self._every(run.experiment, run.steps)
        name = metric.removeprefix("train/")
        lines = self._sets.curve(run.experiment, None).of_lines(folder.step_metrics())
        return {
            line.step // every: line.values[name]
            for line in lines
            if name in line.values and line.step % every == 0 and line.step < run.steps
        }

    def objectives(self, experiment: Experiment, record: Record) -> tuple[float, ...]:
        """The objectives of a finished run of `experiment`, from the evaluations that the search requests.

        Raises:
            StoreError: an objective was not measured.
        """
        found = self._sets.taken(record, experiment)
        return tuple(self._objective(record, found, objective.metric) for objective in self.search.objectives)

    def violation(self, records: list[Record]) -> float:
        """How far the runs exceed the constraints, relative to them; 0 if they do not."""
        limits, worst = self.search.constraints, 0.0
        for record in records:
            hours = record.cost.duration_s / 3600
            for used, limit in ((record.cost.peak_memory_gb, limits.peak_memory_gb), (hours, limits.gpu_hours)):
                if limit is not None:
                    worst = max(worst, used / limit - 1)
        return worst

    def known(self) -> Iterator[Known]:
        """Configurations of the space whose runs are all finished in the store, no matter what command trained them."""
        grouped: dict[str, tuple[dict[str, Any], dict[int, RunFolder]]] = {}
        for folder in self.project.store.runs():
            try:
                with reading(folder.path):
                    found = self._values(folder) if folder.state() is State.DONE else None
            except StoreError as error:
                self._leave_out(error)
                continue
            if found is not None:
                values, seed = found
                grouped.setdefault(repr(sorted(values.items())), (values, {}))[1][seed] = folder
        for values, folders in grouped.values():
            if set(folders) >= set(self.search.seed_list) and self.why_not(values) is None:
                chosen = {seed: folders[seed] for seed in self.search.seed_list}
                if (final := self._means(values, chosen)) is not None:
                    yield Known(values, final, tuple(folder.id for folder in chosen.values()))

    def _means(self, values: dict[str, Any], folders: Mapping[int, RunFolder]) -> tuple[float, ...] | None:
        try:
            columns = [
                self.objectives(run.experiment, folder.record(run.identity))
                for seed, folder in folders.items()
                for run in (self._planned(values, seed),)
            ]
        except StoreError as error:
            self._leave_out(error)
            return None
        return tuple(fmean(column) for column in zip(*columns, strict=True))

    def _values(self, folder: RunFolder) -> tuple[dict[str, Any], int] | None:
        """The values and the seed of a run if it belongs to a configuration of this search, which its id proves.

        Raises:
            StoreError: its request is damaged.
        """
        table = read_request(folder).experiment.model_dump(mode="json")
        try:
            seed = int(table["seed"])
            values = {path: in_range(parameter, _at(table, path)) for path, parameter in self.search.space.items()}
            if None in values.values() or seed not in self.search.seed_list:
                return None
            same = self._planned(values, seed).id == folder.id
        except (HarnessError, ValueError, KeyError):  # a run of another kind: it lacks a field, or takes no such value
            return None
        return (values, seed) if same else None

    def _planned(self, values: Mapping[str, Any], seed: int) -> PlannedRun:
        return self._scout.add(self.search.configured(values, seed), "arm", self.name)

    def _leave_out(self, error: StoreError) -> None:
        self.left_out.append(f"not used as a warm start: {error}")

    def _objective(self, record: Record, taken: Taken, metric: str) -> float:
        group, _, name = metric.partition("/")
        if group == "cost":
            return float(record.cost.model_dump()[name])
        if group == "train" and name in record.final:
            return record.final[name]
        found = taken.metric(metric)
        if found is None:
            what = f"run {record.run_id} has no result for {metric!r} as the search requests it"
            raise StoreError(what, where=self.name, fix=f"it has {', '.join(taken.known) or 'nothing else'}")
        return found

    def _length(self, experiment: Experiment, steps: int) -> int:
        every = self._every(experiment, steps)
        return max(-(-steps // every), 1)

    def _every(self, experiment: Experiment, steps: int) -> int:
        every, batch = experiment.evaluation.every, experiment.train.global_batch_size
        if self.search.objectives[0].metric.startswith("train/"):
            return experiment.resources.log_every
        if every is None:
            return max(steps, 1)
        samples = next(iter(self._looked_at.data.values())).samples
        found = every.steps(samples_per_epoch=max(samples, batch), global_batch_size=batch)
        if found < 1:
            raise SpecError(f"{every} is less than one step", where=f"{self.name}: evaluation.every", fix="raise it")
        return found


def plan_name(search: str) -> str:
    """The plan name of a search's runs. The prefix avoids a clash with an ablation whose file has the same name."""
    return f"search-{search}"


def _at(table: Any, path: str) -> Any:
    """The value at a dotted path; None if the table has no such path."""
    for part in path.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def in_range(parameter: Parameter, value: Any) -> Any:
    """The value if it lies in the parameter's range, else None."""
    if isinstance(parameter, Choice):
        return next((level for level in parameter.of if level == value), None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and parameter.low <= value <= parameter.high else None
