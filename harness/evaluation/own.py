"""Metrics in Python files of the user's own. What they need is exported here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import SpecError
from harness.config.evaluation import MetricSpec, MetricTask, PythonMetric
from harness.evaluation.measured import Classified, Measured, Multilabelled, Retrieved, Selected
from harness.evaluation.metrics import clustered_mean
from harness.runs.record import Metric

__all__ = [
    "Classified",
    "EvaluationMetric",
    "Metric",
    "MetricSpec",
    "MetricTask",
    "Multilabelled",
    "OwnMeasured",
    "Retrieved",
    "SampleMetric",
    "mean_of",
    "measure_own",
    "sample_count",
]


class EvaluationMetric(ABC):
    """A metric of a user's own: a number from what was measured of a set."""

    def __init__(self, spec: Any) -> None:
        """`spec` is an object of the class's `Parameters`."""
        self.spec = spec

    @abstractmethod
    def measured(self, found: Any) -> Metric | None:
        """The metric of a set; None if the set does not define it.

        Args:
            found: `Classified`, `Multilabelled` or `Retrieved`, according to the task.
        """


class SampleMetric(EvaluationMetric):
    """The mean of one value per sample. The values are kept beside the record, so that the mean can be verified."""

    @abstractmethod
    def values(self, found: Any) -> NDArray[np.float64] | None:
        """One finite value for each sample [N], in retrieval for each caption [M]; None if the set does not define it.

        Args:
            found: as in `measured`.
        """

    def measured(self, found: Any) -> Metric | None:
        """The mean of `values` with its standard error."""
        values = self.values(found)
        return None if values is None else mean_of(values, found)


@dataclass
class OwnMeasured:
    """What the metrics of a user's own gave for one set."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Values of the `SampleMetric`s, a row for each of the set's outcomes; NaN where a row is of another direction."""


def mean_of(values: NDArray[np.float64], found: Measured) -> Metric:
    """The mean of values [N], with its standard error; captions of one image depend on one another."""
    return clustered_mean(values, found.owner if isinstance(found, Retrieved) else np.arange(len(values)))


def measure_own(specs: Sequence[PythonMetric], found: Measured, on: str) -> OwnMeasured:
    """The metrics of `specs` on the set that is called `on`.

    Raises:
        SpecError: a file cannot be imported, or a metric is not finite or gives another number of values.
    """
    measured = OwnMeasured()
    for spec in specs:
        made: EvaluationMetric = spec.built()
        if isinstance(made, SampleMetric):
            values = made.values(found)
            if values is None:
                continue
            values = _checked_values(spec, np.asarray(values, dtype=np.float64), found, on)
            metric: Metric | None = mean_of(values, found)
            rest = len(found.of_images) if isinstance(found, Retrieved) else 0
            measured.columns[spec.name] = np.concatenate([values, np.full(rest, np.nan)])
        else:
            metric = made.measured(found)
        if metric is None:
            continue
        if not isinstance(metric, Metric) or not math.isfinite(metric.value):
            told = metric.value if isinstance(metric, Metric) else repr(metric)
            raise _wrong(spec, f"gives {told} on {on}", "return a Metric with a finite value, or None")
        measured.metrics[spec.name] = metric
    return measured


def sample_count(found: Measured) -> int:
    """How many values a `SampleMetric` gives: one for each sample, in retrieval for each caption."""
    match found:
        case Retrieved():
            return len(found.of_captions)
        case Classified():
            return len(found.ranks)
        case Multilabelled():
            return len(found.targets)
        case Selected():
            return len(found.found_texts)


def _checked_values(spec: PythonMetric, values: NDArray[np.float64], found: Measured, on: str) -> NDArray[np.float64]:
    wanted = sample_count(found)
    if values.shape != (wanted,):
        told = f"gives values of shape {list(values.shape)} on {on}, which has {wanted} samples"
        raise _wrong(spec, told, "return one value for each sample (in retrieval, for each caption)")
    if not np.isfinite(values).all():
        raise _wrong(spec, f"gives values on {on} that are not finite", "return finite values, or None")
    return values


def _wrong(spec: PythonMetric, what: str, fix: str) -> SpecError:
    return SpecError(f"metric {spec.name} {what}", where=spec.file, fix=fix)
