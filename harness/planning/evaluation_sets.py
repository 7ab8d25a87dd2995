"""The evaluation sets of this machine as the head sees them: where they are, what they contain, what a record has."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from harness.base.errors import DataError
from harness.config.data import Data
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.config.protocols import VARIANTS, parted, set_name
from harness.data.synthetic.embedded import embedded_sets
from harness.evaluation.conditions import Contents
from harness.evaluation.contents import contents_at
from harness.evaluation.layout import is_set, locate
from harness.evaluation.recorded import AskedSet, OwnCurve, TakenSet, metric_of, taken
from harness.runs.record import EvaluationResult, Record
from harness.runs.request import on_this_machine
from harness.runs.store import Store
from harness.runs.suite_averages import averages

FRESH_S = 1.0
"""How long the contents of a set are not looked at again: a plan has thousands of runs and a handful of sets."""


@dataclass(frozen=True)
class Taken:
    """What a record has of all that a spec asks for."""

    sets: tuple[TakenSet, ...]

    @property
    def evaluations(self) -> tuple[EvaluationResult, ...]:
        """The evaluations that the spec asks for, with the metrics that it asks for."""
        return tuple(evaluation for one in self.sets for evaluation in one.evaluations)

    def metric(self, name: str) -> float | None:
        """The value of `set/metric`, averages of suites too; None if it was not measured as the spec asks."""
        return metric_of((*self.evaluations, *averages(self.evaluations)), name)

    @property
    def known(self) -> tuple[str, ...]:
        """The name of every metric that was measured as the spec asks."""
        return tuple(f"{one.set}/{name}" for one in self.evaluations for name in one.metrics)

    @property
    def missing(self) -> tuple[str, ...]:
        """The sets that are not measured, or lack a metric."""
        return tuple(one.asked.reference for one in self.sets if not one.is_complete)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What could not be checked, a sentence for each set."""
        return tuple(doubt for one in self.sets if (doubt := one.unknown or one.unchecked))


@dataclass
class EvaluationSets:
    """The evaluation sets of this machine."""

    store: Store
    root: Path | None
    """`evaluation_root` of the settings."""
    _contents: dict[tuple[str, str, str], tuple[float, Contents | None]] = field(default_factory=dict)
    _asked: dict[tuple[int, int], tuple[float, Data, Evaluation, tuple[AskedSet, ...]]] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> EvaluationSets:
        """Those that a store's runs are measured on."""
        return cls(store, store.evaluation_root)

    def taken(self, record: Record, experiment: Experiment) -> Taken:
        """What `record` has of all that `experiment` asks for."""
        return Taken(tuple(taken(one, record.evaluations) for one in self.asked(experiment)))

    def curve(self, experiment: Experiment, record: Record | None) -> OwnCurve:
        """Which metrics of a run's training are of the sets that `experiment` asks for."""
        return OwnCurve.of(self.asked(experiment), None if record is None else record.evaluations)

    def asked(self, experiment: Experiment) -> tuple[AskedSet, ...]:
        """Every set that `experiment` asks for, less those of suites that are not on this machine."""
        data, evaluation = experiment.data, experiment.evaluation
        key = (id(data), id(evaluation))  # arms share the objects of the sections that they do not change
        if (known := self._asked.get(key)) is not None and time.monotonic() - known[0] < FRESH_S:
            return known[3]
        here = on_this_machine(evaluation, self.root)
        own = embedded_sets(data, self.store.data)
        found = tuple(self._set(here, reference, own) for reference in here.references)
        now = time.monotonic()
        self._asked = {key: kept for key, kept in self._asked.items() if now - kept[0] < FRESH_S}
        self._asked[key] = (now, data, evaluation, found)
        return found

    def _set(self, evaluation: Evaluation, reference: str, own: dict[str, Path]) -> AskedSet:
        name, protocol = parted(reference)
        probe = protocol is not None and VARIANTS[protocol].probe
        split = evaluation.under(reference).split
        try:
            contents = self._at(reference, self._place(name, own), split, probe=probe)
            return AskedSet.of(evaluation, reference, contents, name in own)
        except DataError as error:
            return AskedSet(reference, evaluation.under(reference), None, unreadable=str(error))

    def _place(self, name: str, own: dict[str, Path]) -> Path | None:
        try:
            return locate(name, evaluation_root=self.root, embedded=own)
        except DataError:
            return None

    def _at(self, reference: str, place: Path | None, split: str, *, probe: bool) -> Contents | None:
        if place is None or not is_set(place):
            return None
        key = (reference, str(place), split)
        found = self._contents.get(key)
        if found is None or time.monotonic() - found[0] > FRESH_S:
            name = set_name(reference)
            contents = contents_at(place, name, split, self.store.evaluation_sets, probe=probe)
            found = self._contents[key] = (time.monotonic(), contents)
        return found[1]
