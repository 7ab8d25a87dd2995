"""Two errors of one number: of another training, and of another test set.

The outcome of seed s in sample i is taken as mean + training_s + sample_i + residual_si, crossed and all random. The
spread over seeds tells the error of another training on these samples; the spread over samples tells the error of
another test set for these trainings. The residual is in both, and is counted once in the error of both together.

Sources: crossed random effects (Searle, Casella and McCulloch, Variance Components, 1992, ch. 4); standard errors of
clustered samples (Liang and Zeger, Biometrika 73, 1986); degrees of freedom by Satterthwaite, Biometrics 2 (1946).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.statistics.seeds import Difference, Interval, t_interval


@dataclass(frozen=True)
class SampleError:
    """How far a mean over seeds and samples would move with other samples."""

    seeds: int
    samples: int
    mean: float
    error: float
    """Standard error for these trainings on another test set."""
    residual: float
    """The part of it that the error over seeds has too."""
    df: int

    @property
    def interval(self) -> Interval:
        """Of 95 %, for these trainings on another test set."""
        return t_interval(self.mean, self.error, self.df)

    def both(self, over_seeds: Difference) -> Interval | None:
        """The interval of 95 % for other trainings on another test set; None if `over_seeds` has no standard error."""
        if over_seeds.error is None or over_seeds.df is None:
            return None
        samples = max(self.error**2 - self.residual**2, 0.0)
        together = over_seeds.error**2 + samples
        freedom = together**2 / (over_seeds.error**4 / over_seeds.df + samples**2 / self.df)
        return t_interval(over_seeds.mean, math.sqrt(together), freedom)


def sample_error(values: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> SampleError | None:
    """The error over samples of the mean of `values` [S, n], of S seeds on the same n samples.

    Args:
        groups: which samples are drawn together [n], from 0 on; None: each alone.

    Returns:
        None if there are fewer than two groups, or nothing varies over them.
    """
    seeds, samples = values.shape
    places = np.arange(samples) if groups is None else groups
    sizes = np.bincount(places)
    count = len(sizes)
    if count < 2:
        return None
    centred = values - values.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(places, row) for row in centred])  # [S, groups]
    together = sums.mean(axis=0)
    scale = count / (count - 1) / samples**2
    error = math.sqrt(scale * float((together**2).sum()))
    if error <= 1e-12:
        return None
    left = float(((sums - together) ** 2).sum()) / (seeds - 1) / seeds if seeds > 1 else 0.0
    return SampleError(seeds, samples, float(values.mean()), error, math.sqrt(scale * left), count - 1)
