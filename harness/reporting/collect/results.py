"""Every run of a plan as it stands in the store: each record is read once, nothing is computed yet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from harness.base.boundary import reading
from harness.base.errors import StoreError
from harness.evaluation.recorded import OwnCurve
from harness.planning.claims import first_seeds
from harness.planning.evaluation_sets import EvaluationSets
from harness.planning.isolation import differing
from harness.planning.plan import Plan
from harness.reporting.collect.design import Design, design_of
from harness.reporting.formats.numbers import clean
from harness.runs.folder import RunFolder, State
from harness.runs.integrity import changed_files
from harness.runs.metrics import chance_level, metric_ids
from harness.runs.planned import PlannedRun
from harness.runs.record import Record, StepMetrics
from harness.runs.store import Store
from harness.runs.suite_averages import averages

_NUMBER = re.compile(r"(\d+)")
_PACE = ("data_wait", "images_per_s")
DAMAGED = "failed: damaged"
TRAINING = "train"
"""The last values of training metrics are called `train/NAME`."""


Protocols = dict[str, tuple[str, dict[str, Any]]]
"""By protocol id: the evaluation set and everything that was fixed."""


@dataclass(frozen=True)
class Measured:
    """One metric of one run."""

    value: float
    standard_error: float | None = None
    """Over the evaluation samples."""
    samples: int | None = None
    protocol_id: str | None = None
    """None for training metrics, which have no protocol."""
    metric_id: str | None = None
    """What the number depends on besides the weights: equal ids may stand in one column."""
    chance: float | None = None
    """What a model that guesses would reach; None where that is not known."""

    @property
    def identity(self) -> str | None:
        """What tells whether two numbers can be compared."""
        return self.metric_id or self.protocol_id


@dataclass(frozen=True)
class RunResult:
    """One run: what it measured, or why there is nothing."""

    arm: str
    """Empty for a run that only teaches others."""
    seed: int
    folder: RunFolder
    planned: PlannedRun
    state: State
    cause: str
    """Why there is no record: `missing`, `running`, `interrupted`, `failed: out_of_memory`; empty when done."""
    message: str = ""
    record: Record | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)
    """By `set/metric`, and `train/NAME`: of sets what the run's own spec asks for."""
    doubts: tuple[str, ...] = ()
    """What could not be checked of its evaluation sets."""
    curve: Callable[[], OwnCurve] | None = None
    """Which metrics of its training its own spec asks for, found only where lines are read."""
    changed: frozenset[str] = frozenset()
    """Files that were changed since the run ended: curves and outcomes, which are left out."""

    def lines(self) -> list[StepMetrics]:
        """What its training has logged; of evaluation sets only what its own spec asks for.

        Raises:
            StoreError: they cannot be read.
        """
        lines = [] if self.folder.metrics.name in self.changed else self.folder.step_metrics()
        return lines if self.curve is None else self.curve().of_lines(lines)

    @property
    def sets(self) -> set[str]:
        """Names of the evaluation sets that it was measured on."""
        return {one.set for one in self.record.evaluations} if self.record else set()

    @property
    def is_damaged(self) -> bool:
        """Whether its folder is damaged, another run's, or made with other defaults."""
        return self.cause == DAMAGED


@dataclass(frozen=True)
class Results:
    """All that a report is made from."""

    plan: Plan
    runs: tuple[RunResult, ...]
    """Arms in declared order, seeds within them."""
    teachers: tuple[RunResult, ...]
    """Runs that only teach others."""
    protocols: Protocols
    """What was fixed in each evaluation."""
    first_seeds: Mapping[str, int] = field(default_factory=dict)
    """How many seeds each claim was first planned with, by its text."""

    @cached_property
    def by_arm(self) -> dict[str, tuple[RunResult, ...]]:
        """The runs of each arm."""
        runs_of: dict[str, list[RunResult]] = {arm.name: [] for arm in self.plan.arms}
        for run in self.runs:
            runs_of[run.arm].append(run)
        return {arm: tuple(runs) for arm, runs in runs_of.items()}

    @cached_property
    def labels(self) -> dict[str, str]:
        """What each arm is called in print."""
        return {arm.name: clean(arm.label) for arm in self.plan.arms}

    @cached_property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The fields that tell each arm from the baseline (`harness.planning.isolation`)."""
        experiments = self.plan.experiments
        baseline = experiments[self.plan.ablation.baseline]
        return {arm: differing(experiment, baseline) for arm, experiment in experiments.items()}

    @cached_property
    def design(self) -> Design:
        """Which factors the arms are made of."""
        return design_of(self.plan.ablation)

    @cached_property
    def done(self) -> tuple[RunResult, ...]:
        """The arms' finished runs."""
        return tuple(run for run in self.runs if run.record is not None)

    @cached_property
    def damaged(self) -> tuple[RunResult, ...]:
        """Runs and teachers whose folders are damaged, another run's, or made with other defaults."""
        return tuple(run for run in (*self.runs, *self.teachers) if run.is_damaged)

    @cached_property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """Every measured metric, by evaluation set, by name: recall@5 before recall@10."""
        names: dict[str, dict[str, None]] = {}
        for run in self.done:
            for name in run.measured:
                set_name, _, metric = name.partition("/")
                if set_name != TRAINING:
                    names.setdefault(set_name, {})[metric] = None
        return {set_name: tuple(sorted(metrics, key=_natural)) for set_name, metrics in names.items()}

    @cached_property
    def finals(self) -> tuple[str, ...]:
        """Every training metric that a record has a last value of, losses first, the machine's pace last."""
        found = dict.fromkeys(name for run in self.done if run.record for name in run.record.final)
        return tuple(sorted(found, key=lambda name: (name in _PACE, name.partition("/")[0] != "loss")))


def refuse_nothing(results: Results) -> None:
    """Refuse a report of nothing: no run has begun.

    Raises:
        StoreError: so it is.
    """
    if all(run.state is State.MISSING for run in results.runs):
        what = f"there is nothing to report: none of its {len(results.runs)} runs has begun"
        raise StoreError(what, where=results.plan.name, fix="`harness run` trains and evaluates them")


def collect(plan: Plan, store: Store) -> Results:
    """What the store holds of `plan`. A damaged record is a failed run of the report, not its end."""
    reader = _Reader(store, EvaluationSets.of(store))
    cells = [(plan.runs[run_id], arm, seed) for (arm, seed), run_id in plan.cells.items()]
    teachers = [(run, "", run.experiment.seed) for run in plan.runs.values() if run.role == "teacher"]
    runs, others = (tuple(reader.read(*cell) for cell in part) for part in (cells, teachers))
    return Results(plan, runs, others, reader.protocols, first_seeds(plan, store))


@dataclass
class _Reader:
    """Reads runs of a store, of each what its own spec asks for."""

    store: Store
    sets: EvaluationSets
    protocols: Protocols = field(default_factory=dict)

    def read(self, planned: PlannedRun, arm: str, seed: int) -> RunResult:
        """One run as it stands; a damaged record is a failed run."""
        folder, state = self.store.run(planned.id), State.FAILED
        try:
            with reading(folder.path):
                state = folder.state()
                if state is State.DONE:
                    return self._done(folder, planned, arm, seed)
                cause, message = _why(folder, state)
        except StoreError as error:
            state, cause, message = State.FAILED, DAMAGED, str(error)
        return RunResult(arm, seed, folder, planned, state, cause, clean(message))

    def _done(self, folder: RunFolder, planned: PlannedRun, arm: str, seed: int) -> RunResult:
        record = folder.record(planned.identity)
        changed = changed_files(record, folder.path)
        doubts = [f"{name} was changed since the run ended and is left out" for name in changed]
        if record.seal is None and (lines := folder.damaged_lines()):
            doubts.append(f"{folder.metrics.name} has {len(lines)} damaged lines, which are left out")
        if record.seal is None:
            doubts += [f"{name} is damaged and is left out" for name in folder.damaged_outcomes()]
        found = self.sets.taken(record, planned.experiment)
        asked = record.model_copy(update={"evaluations": found.evaluations})
        return RunResult(
            arm,
            seed,
            folder,
            planned,
            State.DONE,
            "",
            record=_sharing(asked, self.protocols),
            measured=measurements(asked),
            doubts=(*found.doubts, *doubts),
            changed=frozenset(changed),
            curve=partial(self.sets.curve, planned.experiment, record),
        )


def measurements(record: Record) -> dict[str, Measured]:
    """All metrics of a record by `set/metric`, averages of suites too, and last training metrics as `train/NAME`.

    Args:
        record: its evaluations have each metric of a set once, as those do that a spec asks for.
    """
    found = {
        f"{evaluation.set}/{name}": Measured(
            metric.value,
            metric.standard_error,
            metric.samples,
            evaluation.protocol_id,
            ids[name],
            chance_level(evaluation, name),
        )
        for evaluation in (*record.evaluations, *averages(record.evaluations))
        for ids in (metric_ids(evaluation),)
        for name, metric in evaluation.metrics.items()
    }
    return found | {f"{TRAINING}/{name}": Measured(number) for name, number in record.final.items()}


def every_measurement(record: Record) -> dict[str, list[Measured]]:
    """All that a record has, whatever spec asked for it: several measurements of one name where there are several."""
    found: dict[str, dict[str | None, Measured]] = {}
    for evaluation in record.evaluations:
        for name, one in measurements(record.model_copy(update={"evaluations": (evaluation,)})).items():
            found.setdefault(name, {})[one.identity] = one
    for name, one in measurements(record).items():
        found.setdefault(name, {}).setdefault(one.identity, one)
    return {name: list(ways.values()) for name, ways in found.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in _NUMBER.split(name)]


def most_common(items: list[str]) -> str | None:
    """The most frequent item, the first of several; None if there is none."""
    return Counter(items).most_common(1)[0][0] if items else None


def _sharing(record: Record, known: Protocols) -> Record:
    """The record with one copy of every protocol: thousands of runs would each hold thousands of class names."""
    evaluations = []
    for one in averages(record.evaluations):
        known.setdefault(one.protocol_id, (one.set, one.protocol))
    for one in record.evaluations:
        _, protocol = known.setdefault(one.protocol_id, (one.set, one.protocol))
        ours, theirs = one.protocol.get("metrics", {}), protocol.get("metrics", {})
        if ours.keys() - theirs.keys():  # measured since
            protocol = protocol | {"metrics": {**theirs, **ours}}
            known[one.protocol_id] = (one.set, protocol)
        evaluations.append(one.model_copy(update={"protocol": protocol}))
    return record.model_copy(update={"evaluations": tuple(evaluations)})


def _why(folder: RunFolder, state: State) -> tuple[str, str]:
    match state:
        case State.FAILED:
            failure = folder.failure()
            return f"failed: {failure.cause}", failure.message
        case State.RUNNING | State.INTERRUPTED:
            progress = folder.read_progress()
            known = "step" in progress and "steps" in progress
            return str(state), f"at step {progress['step']} of {progress['steps']}" if known else ""
        case _:
            return str(state), ""
