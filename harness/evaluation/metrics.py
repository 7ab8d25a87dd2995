"""Means of outcomes with their standard errors over the samples of an evaluation set.

A standard error here says how far the value would move on another sample of the same size drawn from where the set
was drawn, for this one trained model. It says nothing about seeds: that is the report's part.

Where all outcomes are alike, the plug-in error would be 0, as if the metric were known exactly. Then the share is taken
as (x + 1/2) / (n + 1) for x of n (Jeffreys' estimate), in the error only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from harness.runs.record import Metric

Outcome = NDArray[np.bool_]
Index = NDArray[np.int64]


def proportion(correct: Outcome) -> Metric:
    """The share p of n independent outcomes that are true, [n]; binomial standard error sqrt(p (1 - p) / n)."""
    value = float(correct.mean())
    return Metric(value=value, standard_error=_binomial_error(value, len(correct)), samples=len(correct))


def clustered_proportion(correct: Outcome, cluster: Index) -> Metric:
    """The share p of M outcomes that are true, [M], where outcomes of one `cluster` [M] depend on one another.

    The captions of one image are such a cluster. sqrt(sum over clusters of (sum in the cluster of (x - p))^2) / M is
    the cluster-robust standard error of a mean (Liang and Zeger 1986, without small-sample factor); with clusters of
    one it is the binomial one.
    """
    value = float(correct.mean())
    if value in (0.0, 1.0):
        error = _binomial_error(value, len(np.unique(cluster)))
    else:
        error = clustered_error(correct.astype(np.float64) - value, cluster)
    return Metric(value=value, standard_error=error, samples=len(correct))


def clustered_mean(values: NDArray[np.float64], cluster: Index) -> Metric:
    """The mean of M values [M], with the standard error of `clustered_proportion`; None if all are equal."""
    value = float(values.mean())
    error = None if np.ptp(values) == 0 else clustered_error(values - value, cluster)
    return Metric(value=value, standard_error=error, samples=len(values))


def clustered_error(deviations: NDArray[np.float64], cluster: Index) -> float:
    """The standard error of a mean of M values, from their deviations from it [M], as in `clustered_proportion`."""
    return math.sqrt(float(np.square(np.bincount(cluster, weights=deviations)).sum())) / len(deviations)


def mean_per_class_recall(correct: Outcome, labels: Index) -> Metric:
    """The mean over the C classes that occur in `labels` [N] of the share r_c of their n_c samples that is correct.

    Classes are fixed and their samples independent, so the variance of the mean is sum_c r_c (1 - r_c) / n_c / C^2. A
    class of one sample adds nothing to it, so on sets with such classes it is a lower bound.
    """
    counts = np.bincount(labels)
    present = counts > 0
    counts = counts[present]
    recall = np.bincount(labels, weights=correct)[present] / counts
    shares = recall if ((recall > 0) & (recall < 1)).any() else (recall * counts + 0.5) / (counts + 1)
    variance = float((shares * (1 - shares) / counts).sum()) / len(counts) ** 2
    return Metric(value=float(recall.mean()), standard_error=math.sqrt(variance), samples=len(labels))


def against_chance(correct: Outcome, cluster: Index, chance: NDArray[np.float64]) -> Metric | None:
    """`clustered_proportion` of M outcomes, with the mean of what each is worth to chance, [M]; None if there are none.

    Outcomes of one choice (a chance of 1) are left out.
    """
    kept = chance < 1
    if not kept.any():
        return None
    found = clustered_proportion(correct[kept], cluster[kept])
    return Metric.model_validate({**dict(found), "chance": float(chance[kept].mean())})


def _binomial_error(share: float, n: int) -> float:
    if share in (0.0, 1.0):
        share = (share * n + 0.5) / (n + 1)
    return math.sqrt(share * (1 - share) / n)
