"""Image and text retrieval with clip-benchmark's definitions, by counting who is ahead instead of sorting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.evaluate.metrics import Index, clustered_proportion, proportion
from harness.record import Metric

SCORES_AT_ONCE = 2**20
"""Scores of one block: 4 MiB, which stays in the caches and bounds the memory at any size of a set."""
DEFINITIONS = {
    "image_retrieval_recall@k": "share of captions whose image is among the k images of highest score",
    "text_retrieval_recall@k": "share of images of which a caption is among the k captions of highest score",
}


@dataclass(frozen=True, eq=False)
class Ranks:
    """Rank of the first hit of every query, from 1."""

    image_retrieval: Tensor
    """[M] for each caption, the rank of its image among the N images."""
    text_retrieval: Tensor
    """[N] for each image, the rank of the first of its captions among the M captions."""


@dataclass(frozen=True, eq=False)
class Captions:
    """M captions, of which U texts are different, and whose they are."""

    features: Tensor
    """[U, d] unit features of the different texts."""
    text: Tensor
    """[M] which text a caption is."""
    owner: Tensor
    """[M] which image it belongs to; every image has at least one."""


def retrieval_ranks(image_features: Tensor, captions: Captions) -> Ranks:
    """Ranks for unit image features [N, d] and `captions`.

    Of candidates with equal scores the one with the lower index comes first. Recall@k is the share of ranks up to k,
    as in clip_benchmark.metrics.zeroshot_retrieval: a query counts when at least one match is among the top k. No
    more than SCORES_AT_ONCE scores, or one row of them, exist at a time.
    """
    images_of_captions = []
    for rows in _blocks(len(captions.text), len(image_features)):
        scores = captions.features[captions.text[rows]] @ image_features.T
        images_of_captions.append(_ahead(scores, captions.owner[rows]) + 1)
    captions_of_images = []
    for rows in _blocks(len(image_features), len(captions.text)):
        scores = (image_features[rows] @ captions.features.T).index_select(1, captions.text)
        captions_of_images.append(_ahead(scores, _best_caption(scores, rows, captions.owner)) + 1)
    return Ranks(torch.cat(images_of_captions), torch.cat(captions_of_images))


def retrieval_metrics(
    image_retrieval: Index, text_retrieval: Index, owner: Index, recall_k: Sequence[int]
) -> dict[str, Metric]:
    """Recall at each of `recall_k` up to the number of candidates, from ranks [M] and [N]; `owner` [M].

    The standard error of image retrieval takes the captions of one image as dependent.
    """
    metrics = {}
    for k in recall_k:
        if k <= len(text_retrieval):
            metrics[f"image_retrieval_recall@{k}"] = clustered_proportion(image_retrieval <= k, owner)
        if k <= len(image_retrieval):
            metrics[f"text_retrieval_recall@{k}"] = proportion(text_retrieval <= k)
    return metrics


def _blocks(queries: int, candidates: int) -> Iterator[slice]:
    rows = max(1, SCORES_AT_ONCE // candidates)
    return (slice(start, min(start + rows, queries)) for start in range(0, queries, rows))


def _ahead(scores: Tensor, target: Tensor) -> Tensor:
    """How many candidates come before `target` [rows] in each row of `scores` [rows, candidates]."""
    own = scores.gather(1, target[:, None])
    index = torch.arange(scores.shape[1], device=scores.device)
    # Summed as int32: the default int64 is five times slower here.
    return ((scores > own) | ((scores == own) & (index < target[:, None]))).sum(dim=1, dtype=torch.int32)


def _best_caption(scores: Tensor, rows: slice, owner: Tensor) -> Tensor:
    """For each image in `rows`, which of its captions comes first: highest score, then lowest index. [rows]."""
    captions = torch.nonzero((owner >= rows.start) & (owner < rows.stop)).squeeze(1)
    row = owner[captions] - rows.start
    own = scores[row, captions]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, own, "amax")
    first = captions.masked_fill(own < best[row], scores.shape[1])
    return captions.new_full((len(scores),), scores.shape[1]).scatter_reduce(0, row, first, "amin")
