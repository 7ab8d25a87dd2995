"""Statistics of arms: over seeds (paired replicates), over the samples of one seed, and over factors."""

from __future__ import annotations

from harness.statistics.factorial import Cell, Effect, effects, level_means
from harness.statistics.samples import SampleTest, compare_samples, mcnemar, paired_bootstrap
from harness.statistics.seeds import (
    CONFIDENCE,
    Difference,
    Interval,
    Summary,
    holm,
    more_seeds,
    paired_difference,
    power,
    summarise,
)

__all__ = [
    "CONFIDENCE",
    "Cell",
    "Difference",
    "Effect",
    "Interval",
    "SampleTest",
    "Summary",
    "compare_samples",
    "effects",
    "holm",
    "level_means",
    "mcnemar",
    "more_seeds",
    "paired_bootstrap",
    "paired_difference",
    "power",
    "summarise",
]
