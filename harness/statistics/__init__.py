"""Statistics of arms: over seeds (paired replicates), over the samples of one seed, and over factors."""

from __future__ import annotations

from harness.statistics.arms import Estimation, Estimator
from harness.statistics.crossed import SampleError, sample_error
from harness.statistics.factorial import Cell, Effect, effects, level_means
from harness.statistics.samples import SampleTest, compare_samples, mcnemar, paired_bootstrap
from harness.statistics.seeds import (
    CONFIDENCE,
    Difference,
    Interval,
    Summary,
    equality_p,
    holm,
    paired_difference,
    summarise,
    t_interval,
)
from harness.statistics.sequential import Evidence, Judged, Rounds

__all__ = [
    "CONFIDENCE",
    "Cell",
    "Difference",
    "Effect",
    "Estimation",
    "Estimator",
    "Evidence",
    "Interval",
    "Judged",
    "Rounds",
    "SampleError",
    "SampleTest",
    "Summary",
    "compare_samples",
    "effects",
    "equality_p",
    "holm",
    "level_means",
    "mcnemar",
    "paired_bootstrap",
    "paired_difference",
    "sample_error",
    "summarise",
    "t_interval",
]
