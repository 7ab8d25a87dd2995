"""Averages over suites: of every metric that all sets of a suite have, and of the metric that stands for each set.

An average with a hole is no average: where a set was not measured there is none, and `holes` says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from harness.config.evaluation import is_suite, members
from harness.config.protocols import VARIANTS, parted, set_name
from harness.config.suites import SUITES
from harness.runs.identity import digest
from harness.runs.metrics import metric_ids
from harness.runs.record import EvaluationResult, Metric

AVERAGE = "average"
"""`SUITE/average`: of the metric that stands for each set, mean per class for some."""


def averages(evaluations: Iterable[EvaluationResult]) -> tuple[EvaluationResult, ...]:
    """An evaluation for each suite, under each protocol, whose sets were all measured; its ids are made of theirs.

    Args:
        evaluations: each metric of a set once, as those have that a spec asks for.
    """
    by_name: dict[str, list[EvaluationResult]] = {}
    for one in evaluations:
        by_name.setdefault(one.set, []).append(one)
    return tuple(_averages(by_name))


def holes(suites: Iterable[str], measured: Iterable[str]) -> dict[str, list[str]]:
    """For each of `suites` that lacks sets among the names `measured`: which; sets never measured here with a reason.

    Args:
        suites: what a spec's `sets` say; other references are passed over.
        measured: names of evaluation sets.
    """
    known, found = set(measured), dict[str, list[str]]()
    for suite in filter(is_suite, suites):
        absent = [name for name in map(set_name, members(suite)) if name not in known]
        absent += [f"{name} ({why})" for name, why in SUITES[parted(suite)[0]].elsewhere.items()]
        if absent:
            found[suite] = absent
    return found


def _averages(by_name: Mapping[str, list[EvaluationResult]]) -> Iterator[EvaluationResult]:
    for name, sets, standing in _definitions():
        if all(one in by_name for one in sets):
            yield _average(name, [by_name[one] for one in sets], standing)


@cache
def _definitions() -> list[tuple[str, list[str], list[str]]]:
    """Every average that can be: its name, its sets, and the metric that stands for each."""
    found = []
    for suite, definition in SUITES.items():
        for name in (suite, *(f"{suite}@{protocol}" for protocol in VARIANTS)):
            sets = [set_name(reference) for reference in members(name)]
            # a protocol that changes no set of the suite would only repeat its average
            if not definition.elsewhere and (name == suite or any("@" in one for one in sets)):
                found.append((name, sets, [definition.metric(one.partition("@")[0]) for one in sets]))
    return found


@dataclass(frozen=True)
class _Part:
    """A metric of one set, and its id."""

    metric: Metric
    id: str


def _average(name: str, parts: list[list[EvaluationResult]], standing: list[str]) -> EvaluationResult:
    sets = [evaluations[0].set for evaluations in parts]
    available = [_metrics(evaluations) for evaluations in parts]
    common = {metric: [one[metric] for one in available] for metric in available[0] if _all_have(metric, available)}
    if all(metric in one for metric, one in zip(standing, available, strict=True)):
        common[AVERAGE] = [one[metric] for metric, one in zip(standing, available, strict=True)]
    protocol = {
        "average of": {evaluations[-1].set: evaluations[-1].protocol_id for evaluations in parts},
        AVERAGE: dict(zip(sets, standing, strict=True)),
    }
    ids = {metric: {of: one.id for of, one in zip(sets, found, strict=True)} for metric, found in common.items()}
    return EvaluationResult(
        set=name,
        task=parts[0][0].task,
        protocol_id=digest(protocol),
        protocol=protocol | {"metrics": ids},
        metrics={metric: _mean([one.metric for one in found]) for metric, found in common.items()},
    )


def _all_have(metric: str, available: list[dict[str, _Part]]) -> bool:
    return all(metric in one for one in available)


def _metrics(evaluations: list[EvaluationResult]) -> dict[str, _Part]:
    found = {name: _Part(one.metrics[name], id) for one in evaluations for name, id in metric_ids(one).items()}
    return found | _mean_recalls(found)


def _mean(metrics: list[Metric]) -> Metric:
    """Of independent sets, so that the squares of their standard errors add up; `samples` is of them all."""
    errors = [metric.standard_error for metric in metrics]
    known = [error for error in errors if error is not None]
    spread = math.sqrt(sum(error**2 for error in known)) / len(metrics) if len(known) == len(metrics) else None
    value = fmean(metric.value for metric in metrics)
    chances = [metric.chance for metric in metrics if metric.chance is not None]
    chance = fmean(chances) if len(chances) == len(metrics) else None
    samples = sum(metric.samples for metric in metrics)
    return Metric(value=value, standard_error=spread, samples=samples, chance=chance)


def _mean_recalls(metrics: Mapping[str, _Part]) -> dict[str, _Part]:
    """mean_recall@k, DataComp's: of both directions. They share their samples, so its error is only bounded."""
    found = {}
    for name, ours in metrics.items():
        _, _, k = name.partition("image_retrieval_recall@")
        other = metrics.get(f"text_retrieval_recall@{k}")
        if k and other is not None:
            value = (ours.metric.value + other.metric.value) / 2
            mean = Metric(value=value, samples=other.metric.samples)
            found[f"mean_recall@{k}"] = _Part(mean, digest([ours.id, other.id]))
    return found
