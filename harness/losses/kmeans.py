"""K-means (Lloyd's algorithm) over the samples of an episode, divided among ranks.

Each rank assigns its share of the points. Sums are added over ranks, so all ranks have the same clusters bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.losses.chunks import STRIP_BYTES
from harness.parallel.ranks import Ranks

__all__ = ["Clusters", "cluster_means", "kmeans", "nearest"]


class Clusters(NamedTuple):
    """The result of K-means on points [n, w]."""

    centres: Tensor
    """[k, w]: the mean of each cluster's points. A cluster that has lost all of them stays where it was."""
    labels: Tensor
    """[n] long: the nearest centre of each point."""


def kmeans(
    points: Tensor, count: int, *, iterations: int, restarts: int, make: torch.Generator, ranks: Ranks
) -> Clusters:
    """`count` clusters of `points` [n, w] by Euclidean distance, n >= count.

    Args:
        points: equal on all ranks.
        count: number of clusters.
        iterations: how often centres are moved to the mean of their points.
        restarts: how often it begins with other points as centres; the least sum of squared distances is kept.
        make: draws the first centres, on the CPU; in the same state on all ranks.
        ranks: that share the work.
    """
    best: Clusters | None = None
    best_score = -torch.inf
    for _ in range(restarts):
        centres = points[torch.randperm(len(points), generator=make)[:count].to(points.device)].clone()
        for _ in range(iterations):
            means, sizes = cluster_means(points, _labels(points, centres, ranks)[0], count, ranks)
            centres = torch.where(sizes[:, None] > 0, means, centres)
        labels, score = _labels(points, centres, ranks)
        if best is None or score > best_score:
            best, best_score = Clusters(centres, labels), score
    assert best is not None
    return best


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Of points [n, w] the nearest of `centres` [k, w], [n] long; and how near: (|x|^2 - distance^2) / 2, [n]."""
    halves = centres.square().sum(1) / 2
    size = max(16, STRIP_BYTES.get(points.device.type, STRIP_BYTES["cpu"]) // (4 * len(centres)))
    found = [(part @ centres.t() - halves).max(dim=1) for part in torch.split(points, size)]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def cluster_means(points: Tensor, labels: Tensor, count: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The mean of the points of each cluster [count, w], 0 where it has none, and their number [count]."""
    mine = slice(*ranks.share(len(points)))
    sums = points.new_zeros(count, points.shape[1]).index_add_(0, labels[mine], points[mine])
    sizes = points.new_zeros(count).index_add_(0, labels[mine], torch.ones_like(points[mine, 0]))
    sums, sizes = ranks.all_reduce_sum(sums), ranks.all_reduce_sum(sizes)
    return sums / sizes.clamp(min=1)[:, None], sizes


def _labels(points: Tensor, centres: Tensor, ranks: Ranks) -> tuple[Tensor, float]:
    """The nearest centre of each point [n], and the sum of how near they are: the larger, the tighter the clusters."""
    mine = slice(*ranks.share(len(points)))
    labels = torch.zeros(len(points), dtype=torch.long, device=points.device)
    score = torch.zeros(1, dtype=torch.float64, device=points.device)
    if mine.start < mine.stop:
        labels[mine], near = nearest(points[mine], centres)
        score += near.double().sum()
    return ranks.all_reduce_sum(labels), float(ranks.all_reduce_sum(score))
