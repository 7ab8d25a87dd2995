"""Zero-shot classification of images that have several classes: average precision, as clip-benchmark defines it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.runs.record import Metric


def average_precisions(logits: Tensor, targets: Tensor) -> Tensor:
    """The average precision of each class, [C], from logits [N, C] and `targets` [N, C], true where an image has it.

    The mean, over a class's images, of the precision among all images that are ranked as high or higher. Of equal
    logits the image with the lower index comes first. 0 for a class without images, as in clip-benchmark.
    """
    order = torch.sort(logits, dim=0, descending=True, stable=True).indices
    hits = targets.gather(0, order).long()  # a float cumsum has no deterministic version on a GPU
    ranks = torch.arange(1, len(logits) + 1, device=logits.device, dtype=torch.float64)
    precision = hits.cumsum(dim=0) / ranks[:, None]
    return (precision * hits).sum(dim=0) / hits.sum(dim=0).clamp(min=1)


def mean_average_precision(logits: Tensor, targets: Tensor) -> Metric:
    """From logits and targets [N, C]. It is no mean over images, so it has no standard error."""
    value = float(average_precisions(logits, targets).mean())
    return Metric(value=value, samples=len(logits))


def first_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which class each image is given first, [N], and the rank of the best of its own, [N]; 0 where it has none."""
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices
    hits = targets.gather(1, order)
    return order[:, 0], torch.where(hits.any(dim=1), hits.int().argmax(dim=1) + 1, 0)


def indicator(targets: Sequence[Sequence[int]], classes: int) -> Tensor:
    """[N, C], true where an image has a class."""
    found = torch.zeros(len(targets), classes, dtype=torch.bool)
    for row, present in enumerate(targets):
        found[row, list(present)] = True
    return found
