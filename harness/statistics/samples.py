"""Uncertainty of the difference between two checkpoints on the same evaluation samples, with one seed each.

It says nothing about other seeds: trained again, both may come out otherwise.

Sources: McNemar, Psychometrika 12 (1947), in its exact form; percentile bootstrap (Efron 1979) over pairs, in groups
where samples belong together (the captions of one image).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from harness.statistics.seeds import CONFIDENCE, Interval

Hits = NDArray[np.bool_]
RESAMPLES = 2000


@dataclass(frozen=True)
class SampleTest:
    """The paired difference of two checkpoints over evaluation samples."""

    samples: int
    difference: float
    """Share of hits, ours minus theirs."""
    interval: Interval
    """Bootstrap interval of 95 % over samples."""
    only_ours: int
    """Samples that only the first checkpoint got right."""
    only_theirs: int
    p: float | None
    """McNemar's exact two-sided p-value. None if samples form groups and are therefore not independent."""


def compare_samples(ours: Hits, theirs: Hits, groups: NDArray[np.int64] | None = None) -> SampleTest:
    """Compare hits [n] of two checkpoints on the same n samples.

    Args:
        groups: which samples belong together [n], from 0 on; None: none do.

    Raises:
        ValueError: there are no samples, or not the same number of each.
    """
    if not len(ours) or len(ours) != len(theirs):
        raise ValueError("both checkpoints need outcomes of the same samples")
    only_ours, only_theirs = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    deltas = ours.astype(np.float64) - theirs.astype(np.float64)
    grouped = groups is not None and len(np.unique(groups)) < len(groups)
    return SampleTest(
        samples=len(ours),
        difference=float(deltas.mean()),
        interval=paired_bootstrap(deltas, groups if grouped else None),
        only_ours=only_ours,
        only_theirs=only_theirs,
        p=None if grouped else mcnemar(only_ours, only_theirs),
    )


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """The exact two-sided p-value: a binomial test with p = 0.5 over the samples that differ."""
    thrown = only_ours + only_theirs
    return min(1.0, 2 * float(special.bdtr(min(only_ours, only_theirs), thrown, 0.5))) if thrown else 1.0


def paired_bootstrap(deltas: NDArray[np.float64], groups: NDArray[np.int64] | None = None, seed: int = 0) -> Interval:
    """The percentile interval of the mean of `deltas` [n] over 2,000 resamples of samples, or of whole groups.

    The same deltas always give the same interval.
    """
    places = np.arange(len(deltas)) if groups is None else groups
    sums, sizes = np.bincount(places, deltas), np.bincount(places).astype(np.float64)
    rng = np.random.default_rng(seed)
    # a resample's mean depends only on how often each group is drawn; groups with equal sum and size are alike
    kinds, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    means = (drawn @ kinds[0]) / np.maximum(drawn @ kinds[1], 1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
