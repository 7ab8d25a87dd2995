"""Similarities within and between images and captions, computed in blocks so that memory stays constant.

Features are unit rows in half precision; products are made in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.features.resumable_array import Halves
from harness.mining.similarity import margin

BLOCK = 16384
"""Rows of the large operand at a time."""
QUERIES = 1024
"""Rows of the small operand at a time."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Nearest(NamedTuple):
    """The nearest rows of some queries."""

    similarity: Tensor
    """[Q, k] descending."""
    row: Tensor
    """[Q, k]"""


def nearest(queries: Halves, pool: Halves, k: int, device: torch.device) -> Nearest:
    """The `k` most similar rows of `pool` [U, e] to each of `queries` [Q, e]; fewer if the pool is smaller."""
    found = [_nearest(unit(queries[part], device), pool, k, device) for part in blocks(len(queries), QUERIES)]
    return Nearest(torch.cat([one.similarity for one in found]), torch.cat([one.row for one in found]))


def _nearest(queries: Tensor, pool: Halves, k: int, device: torch.device) -> Nearest:
    best = Nearest(torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long))
    for part in blocks(len(pool), BLOCK):
        scores = queries @ unit(pool[part], device).T
        top, place = scores.topk(min(k, scores.shape[1]), dim=1)
        similarity = torch.cat([best.similarity, top.cpu()], dim=1)
        row = torch.cat([best.row, place.cpu() + part.start], dim=1)
        kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        best = Nearest(kept.values, row.gather(1, kept.indices))
    return best


def mean_of_nearest(found: Nearest, counts: Ints, own: Ints, k: int) -> Floats:
    """Mean similarity of each caption to its `k` nearest other captions [Q]; equal texts count as often as they occur.

    Args:
        found: the k + 1 nearest distinct texts of each, itself among them.
        counts: how often each distinct text occurs [U].
        own: the distinct text of each query [Q].
    """
    rows = found.row.numpy()
    there = counts[rows] - (rows == own[:, None])
    before = np.cumsum(there, axis=1) - there
    weight = np.clip(k - before, 0, there)
    total = weight.sum(axis=1)
    sums = (found.similarity.numpy().astype(np.float64) * weight).sum(axis=1)
    result: Floats = sums[total > 0] / total[total > 0]
    return result


def nearest_other(found: Nearest, own: Ints) -> tuple[Floats, Ints]:
    """The nearest row other than the query: its similarity [Q] and index [Q]."""
    other = found.row.numpy() != own[:, None]
    place = other.argmax(axis=1)
    each = np.arange(len(own))
    return found.similarity.numpy().astype(np.float64)[each, place], found.row.numpy()[each, place]


def with_image(image: Tensor, captions: Tensor, starts: Ints) -> tuple[Floats, Floats]:
    """Similarity of each image [N, e] to its first caption, and to the mean of all of its captions [N], [N].

    Args:
        captions: [M, e], image by image.
        starts: where each image's captions begin [N + 1].
    """
    first = (image * captions[torch.from_numpy(starts[:-1])]).sum(dim=1)
    mean = torch.nn.functional.normalize(sums(captions, starts), dim=1)
    return _floats(first), _floats((image * mean).sum(dim=1))


def within(captions: Tensor, starts: Ints) -> Floats:
    """Mean similarity of the pairs of captions of each image that has several [N'].

    The mean over pairs follows from the length of the captions' sum: |sum|² is the sum over all pairs and themselves.
    """
    counts = torch.from_numpy(np.diff(starts)).to(captions.device)
    every = sums(captions, starts).square().sum(dim=1)
    themselves = sums(captions.square().sum(dim=1, keepdim=True), starts).squeeze(1)
    several = counts > 1
    pairs = (counts * (counts - 1))[several]
    return _floats((every - themselves)[several] / pairs)


def sums(rows: Tensor, starts: Ints) -> Tensor:
    """The sum of each image's rows [N, e]."""
    owner = torch.from_numpy(np.repeat(np.arange(len(starts) - 1), np.diff(starts))).to(rows.device)
    return torch.zeros(len(starts) - 1, rows.shape[1], device=rows.device).index_add_(0, owner, rows)


def ranks(image: Tensor, text: Tensor) -> Ints:
    """Rank [N] of each image's own caption among those of the batch: 1 + the number of more similar captions.

    A caption counts as more similar where it is so by more than rounding, so equal captions never do.

    Args:
        image: [N, e].
        text: one caption for each image [N, e].
    """
    scores = image @ text.T
    own = scores.diagonal().unsqueeze(1)
    better: Ints = (scores > own + 2 * margin(image)).sum(dim=1).cpu().numpy()
    return better + 1


def unit(rows: Halves, device: torch.device) -> Tensor:
    """Stored rows as float32 on `device`."""
    return torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(device)


def blocks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `total` rows in blocks."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _floats(values: Tensor) -> Floats:
    return values.double().cpu().numpy()
