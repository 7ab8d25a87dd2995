"""A metric: `harness part new metric` writes this file. Change it to yours; docs/extending.md explains the rest."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.evaluation.own import Classified, MetricSpec, MetricTask, SampleMetric


class ReciprocalRank(SampleMetric):
    """Mean over the samples of 1 / rank of the label; 0 beyond `depth`."""

    class Parameters(MetricSpec):
        """What a spec can set."""

        task: ClassVar[MetricTask] = "zeroshot_classification"  # or another one

        depth: int = Field(10, ge=1)
        """Ranks beyond this count as 0."""

    def values(self, found: Classified) -> NDArray[np.float64]:
        """One value for each sample, whose mean is the metric; they are kept beside the record.

        `found` has ranks, predictions and labels [N], and logits [N, C]. For a metric that is no mean over samples,
        derive from EvaluationMetric and define `measured`, which returns a `Metric`.
        """
        return np.where(found.ranks <= self.spec.depth, 1.0 / found.ranks, 0.0)
