"""From the evaluations of a record, those that a spec asks for, metric by metric, and what is missing of them.

A record keeps every evaluation that was made: of sets of one name with other contents, under other conditions. A reader
takes the numbers of exactly the conditions that its own spec asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from harness.config.evaluation import Evaluation
from harness.config.protocols import parted, set_name
from harness.evaluation.conditions import OF_THE_NODE, Contents, conditions, known_conditions
from harness.evaluation.registry import definitions, wanted
from harness.runs.identity import digest
from harness.runs.metrics import family
from harness.runs.record import EvaluationResult, StepMetrics
from harness.runs.request import evaluation_key


@dataclass(frozen=True)
class AskedSet:
    """A set that a spec asks for, and what the machine that asks knows of its contents."""

    reference: str
    spec: Evaluation
    """How this set is measured, and the metrics."""
    conditions: Mapping[str, Any] | None
    """What its numbers depend on besides model and libraries; None where the set is not on this machine."""
    follows_data: bool = False
    """Whether it comes with the run's training data, so that the run's id says what it contains."""
    unreadable: str = ""
    """Why it cannot be told what the set contains, although it is on this machine."""

    @classmethod
    def of(cls, evaluation: Evaluation, reference: str, contents: Contents | None, follows_data: bool) -> AskedSet:
        """The set `reference` of a spec.

        Raises:
            DataError: the set has no templates and the spec gives none.
        """
        spec = evaluation.under(reference)
        return cls(reference, spec, None if contents is None else conditions(contents, spec), follows_data)

    @cached_property
    def name(self) -> str:
        """As its metrics carry it."""
        return set_name(self.reference)

    @cached_property
    def curve_ids(self) -> Mapping[str, str]:
        """What its metrics depend on in the lines of a training; empty where its contents are not known."""
        found = self.conditions
        return {} if found is None else curve_ids(self.name, found, self.spec)

    def is_met_by(self, evaluation: EvaluationResult) -> bool:
        """Whether `evaluation` was made of these contents under these conditions."""
        if evaluation.set != self.name:
            return False
        if self.conditions is not None and ("samples" in evaluation.protocol or not self.follows_data):
            return conditions_of(evaluation) == self.conditions
        return self._may_be_met_by(evaluation)

    def _may_be_met_by(self, evaluation: EvaluationResult) -> bool:
        """As far as can be told without the set: nothing contradicts it, and the spec had the same reference."""
        known = known_conditions(evaluation.task, self.spec)
        if any(evaluation.protocol.get(part, value) != value for part, value in known.items()):
            return False
        if evaluation.protocol.get("similarity") != known.get("similarity"):
            return False  # a protocol without this part is one of pooled features
        if self.follows_data or evaluation.request == evaluation_key(self.spec, self.reference):
            return True
        is_plain = PurePath(parted(self.reference)[0]).name == parted(self.reference)[0]
        return (evaluation.reference or (self.name if is_plain else "")) == self.reference


@dataclass(frozen=True)
class TakenSet:
    """What a record has of a set that a spec asks for."""

    asked: AskedSet
    evaluations: tuple[EvaluationResult, ...] = ()
    """With the metrics that are asked for only, each metric once. More than one where libraries changed between."""
    lacking: tuple[str, ...] | None = None
    """Metrics that are asked for and were not measured; None where nothing was."""
    unknown: str = ""
    """Why it cannot be told which of the record's evaluations is meant."""
    unchecked: str = ""
    """Why the contents of the set could not be compared; its numbers are those recorded under its name."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to measure."""
        return self.lacking == ()


def taken(asked: AskedSet, evaluations: Iterable[EvaluationResult]) -> TakenSet:
    """What `evaluations` have of the set that is asked for."""
    if asked.unreadable:
        return TakenSet(asked, unknown=asked.unreadable)
    found = [one for one in evaluations if asked.is_met_by(one)]
    if not found:
        return TakenSet(asked)
    is_blind = asked.conditions is None and not asked.follows_data
    if is_blind and len({_contents_of(one) for one in found}) > 1:
        what = f"{asked.name} is not on this machine, and the record has measurements of several versions of it"
        return TakenSet(asked, unknown=what)
    task = found[-1].task
    names, ours = wanted(task, asked.spec), definitions(task, asked.spec)
    source = {name: one for one in found for name in names if name in one.metrics and _is_defined_so(ours, one, name)}
    absent = [name for name in names if name not in source]
    undefined = {name for one in found for name in _undefined(ours, one, asked, absent)} if absent else set()
    parts = [_restricted(one, [name for name in names if source.get(name) is one]) for one in found]
    return TakenSet(
        asked,
        tuple(part for part in parts if part.metrics),
        tuple(name for name in absent if name not in undefined),
        unchecked=f"{asked.name} is not on this machine: its contents are assumed to be those that were measured"
        if is_blind
        else "",
    )


def added(recorded: Sequence[EvaluationResult], new: Sequence[EvaluationResult]) -> tuple[EvaluationResult, ...]:
    """`recorded` with what was measured since: new metrics beside the old ones where they share their conditions."""
    found = list(recorded)
    for one in new:
        place = next((place for place, old in enumerate(found) if _can_hold(old, one)), None)
        if place is None:
            found.append(one)
        else:
            found[place] = _joined(found[place], one)
    return tuple(found)


@dataclass(frozen=True)
class OwnCurve:
    """Which metrics of evaluation sets, among the lines of a training, are those that a spec asks for.

    Lines say what each metric depends on. Older lines do not: they are taken where the record has one evaluation of the
    set, and it is asked for, or where there is no record yet.
    """

    ids: Mapping[str, frozenset[str]]
    """By `set/metric` that is asked for: what is meant."""
    sets: Mapping[str, bool]
    """By name of a set that is asked for: whether its values are meant where a line says nothing."""

    @classmethod
    def of(cls, asked: Sequence[AskedSet], recorded: Sequence[EvaluationResult] | None) -> OwnCurve:
        """Those of a run.

        Args:
            recorded: the evaluations of its record; None while it has none.
        """
        ids: dict[str, frozenset[str]] = {}
        for one in asked:
            for found in _curve_ids_meant(one, recorded or ()):
                ids |= {name: ids.get(name, frozenset()) | {id} for name, id in found.items()}
        return cls(ids, {one.name: recorded is None or _is_only(one, recorded) for one in asked})

    def of_lines(self, lines: Iterable[StepMetrics]) -> list[StepMetrics]:
        """The lines without the metrics of sets that are not meant."""
        return [self._own(line) for line in lines]

    def _own(self, line: StepMetrics) -> StepMetrics:
        values = {name: value for name, value in line.values.items() if self._is_own(line, name)}
        return line if len(values) == len(line.values) else line.model_copy(update={"values": values})

    def _is_own(self, line: StepMetrics, name: str) -> bool:
        if name in line.evaluated:
            return line.evaluated[name] in self.ids.get(name, ())
        return self.sets.get(name.partition("/")[0], True)


def curve_ids(
    name: str, found: Mapping[str, Any], spec: Evaluation, metrics: Iterable[str] | None = None
) -> dict[str, str]:
    """What metrics of the set `name` depend on in a training's lines: by `set/metric`, a digest.

    Args:
        found: the conditions under which the set is measured.
        spec: how it is measured.
        metrics: their names; all that `spec` asks for if None.
    """
    task, shared = found["task"], digest(dict(found))
    texts, metrics = definitions(task, spec), wanted(task, spec) if metrics is None else metrics
    return {f"{name}/{one}": digest([shared, one, texts.get(family(one, texts)[0])]) for one in metrics}


def _curve_ids_meant(asked: AskedSet, recorded: Sequence[EvaluationResult]) -> list[Mapping[str, str]]:
    if asked.conditions is not None:
        return [asked.curve_ids]
    conditions = [found for one in taken(asked, recorded).evaluations if "task" in (found := conditions_of(one))]
    return [curve_ids(asked.name, found, asked.spec) for found in conditions]


def _is_only(asked: AskedSet, recorded: Sequence[EvaluationResult]) -> bool:
    named = [one for one in recorded if one.set == asked.name]
    return len(named) == 1 and asked.is_met_by(named[0])


def conditions_of(evaluation: EvaluationResult) -> dict[str, Any]:
    """The conditions that the protocol of an evaluation holds."""
    return {part: value for part, value in evaluation.protocol.items() if part not in OF_THE_NODE}


def metric_of(evaluations: Iterable[EvaluationResult], name: str) -> float | None:
    """The value of `set/metric` among evaluations of which each set has one; None if it was not measured."""
    for one in evaluations:
        if name.startswith(f"{one.set}/") and (metric := one.metrics.get(name.removeprefix(f"{one.set}/"))):
            return metric.value
    return None


def _can_hold(old: EvaluationResult, new: EvaluationResult) -> bool:
    """Whether the metrics of `new` can go beside those of `old`: same set, weights and conditions, no contradiction."""
    if (old.set, old.task, _shared(old)) != (new.set, new.task, _shared(new)):
        return False
    if old.weights and new.weights and old.weights != new.weights:
        return False
    ours, theirs = _definitions(old), _definitions(new)
    return all(theirs.get(name, text) == text for name, text in ours.items())


def _joined(old: EvaluationResult, new: EvaluationResult) -> EvaluationResult:
    protocol = {**old.protocol, "metrics": {**_definitions(old), **_definitions(new)}}
    undefined = tuple(dict.fromkeys([*old.undefined, *new.undefined]))
    metrics = {**old.metrics, **new.metrics}
    changes = {"protocol": protocol, "metrics": metrics, "undefined": undefined, "request": new.request}
    changes |= {"weights": new.weights or old.weights, "reference": new.reference or old.reference}
    return EvaluationResult.model_validate({**dict(old), **changes})


def _restricted(one: EvaluationResult, names: Sequence[str]) -> EvaluationResult:
    return one.model_copy(update={"metrics": {name: one.metrics[name] for name in names}})


def _is_defined_so(ours: Mapping[str, str], one: EvaluationResult, name: str) -> bool:
    """Whether the metric was measured by the definition that this code has of it."""
    of, _ = family(name, ours)
    return _definitions(one).get(of, ours[of]) == ours[of]


def _undefined(ours: Mapping[str, str], one: EvaluationResult, asked: AskedSet, names: Sequence[str]) -> list[str]:
    """Those of the metrics `names` that the evaluation has looked for in vain."""
    if one.undefined:
        return [name for name in one.undefined if name in names and _is_defined_so(ours, one, name)]
    if one.reference:
        return []
    # Records before `undefined`: the definitions that a protocol has were asked for, and its request told the k.
    stated = _definitions(one)
    same = one.request == evaluation_key(asked.spec, asked.reference)
    return [name for name in names if name in stated or (same and (family(name, stated)[0] in stated or not stated))]


def _contents_of(one: EvaluationResult) -> str:
    return repr([one.protocol.get(part) for part in ("samples", "classnames", "templates", "classifier")])


def _shared(one: EvaluationResult) -> dict[str, Any]:
    return {part: value for part, value in one.protocol.items() if part != "metrics"}


def _definitions(one: EvaluationResult) -> Mapping[str, str]:
    found: Mapping[str, str] = one.protocol.get("metrics", {})
    return found
