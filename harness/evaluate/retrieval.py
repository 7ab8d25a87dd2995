"""Image and text retrieval with clip-benchmark's definitions, by counting who is ahead instead of sorting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.evaluate.metrics import Index, clustered_proportion, proportion
from harness.record import Metric

SCORES_AT_ONCE = 2**21
"""Scores of one block: 8 MiB, small enough for the caches and large enough for the matrix product."""
SCORES_KEPT = 2**27
"""Scores that are kept at most: 512 MiB, which is enough for COCO's 5,000 images and 25,000 captions."""
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

    def of_captions(self, scores: Tensor) -> Tensor:
        """[rows, M] of the captions from [rows, U] of the different texts."""
        alike = len(self.features) == len(self.text)  # texts stand in the order of their first captions
        return scores if alike else scores.index_select(1, self.text)


def retrieval_ranks(image_features: Tensor, captions: Captions) -> Ranks:
    """Ranks for unit image features [N, d] and `captions`.

    Of candidates with equal scores the one with the lower index comes first. Recall@k is the share of ranks up to k,
    as in clip_benchmark.metrics.zeroshot_retrieval: a query counts when at least one match is among the top k. Up to
    SCORES_KEPT scores of captions in their images' order are kept, so that one matrix product serves both directions;
    beyond, they are made twice, in blocks.
    """
    ascending = bool((captions.owner.diff() >= 0).all())
    if ascending and len(image_features) * len(captions.features) <= SCORES_KEPT:
        return _ranks_of_one_product(image_features, captions)
    images_of_captions = []
    for rows in _blocks(len(captions.text), len(image_features)):
        scores = captions.features[captions.text[rows]] @ image_features.T
        images_of_captions.append(_ahead(scores, captions.owner[rows]) + 1)
    captions_of_images = [
        _first_caption_rank(image_features[rows] @ captions.features.T, rows, captions)
        for rows in _blocks(len(image_features), len(captions.text))
    ]
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


def _ranks_of_one_product(image_features: Tensor, captions: Captions) -> Ranks:
    kept = image_features.new_empty(len(image_features), len(captions.features))
    captions_of_images = []
    for rows in _blocks(len(kept), len(captions.text)):
        torch.mm(image_features[rows], captions.features.T, out=kept[rows])
        captions_of_images.append(_first_caption_rank(kept[rows], rows, captions))
    own = kept[captions.owner, captions.text]
    ahead = torch.zeros_like(captions.owner, dtype=torch.int32)
    for rows in _blocks(len(kept), len(captions.text)):
        ahead += _images_ahead(captions.of_captions(kept[rows]), own, rows, captions.owner)
    return Ranks(ahead + 1, torch.cat(captions_of_images))


def _images_ahead(scores: Tensor, own: Tensor, rows: slice, owner: Tensor) -> Tensor:
    """How many of the images `rows` come before each caption's own, [M], for `scores` [rows, M] and `own` [M].

    An equal score is ahead where its image has the lower index. Owners ascend, so that one comparison of a score is
    enough for all captions but those of these very images.
    """
    bounds = owner.new_tensor([rows.start, rows.stop])
    first, last = torch.searchsorted(owner, bounds).tolist()
    here = slice(first, last)
    index = torch.arange(rows.start, rows.stop, device=owner.device)
    equal = (scores[:, here] == own[here]) & (index[:, None] < owner[here])
    parts = [
        scores[:, :first] > own[:first],
        (scores[:, here] > own[here]) | equal,
        scores[:, last:] >= own[last:],
    ]
    return torch.cat([_count(part, dim=0) for part in parts])


def _first_caption_rank(scores: Tensor, rows: slice, captions: Captions) -> Tensor:
    """Rank of the first own caption of each of the images `rows`, for scores [rows, U] of the different texts."""
    scores = captions.of_captions(scores)
    return _ahead(scores, _best_caption(scores, rows, captions.owner)) + 1


def _blocks(queries: int, candidates: int) -> Iterator[slice]:
    rows = max(1, SCORES_AT_ONCE // candidates)
    return (slice(start, min(start + rows, queries)) for start in range(0, queries, rows))


def _ahead(scores: Tensor, target: Tensor) -> Tensor:
    """How many candidates come before `target` [rows] in each row of `scores` [rows, candidates]."""
    own = scores.gather(1, target[:, None])
    ahead = _count(scores > own, dim=1)
    # Ties are rare, so whether there are any is asked first; the target itself is always equal.
    tied = torch.nonzero(_count(scores >= own, dim=1) > ahead + 1).squeeze(1)
    if len(tied):
        index = torch.arange(scores.shape[1], device=scores.device)
        earlier = (scores[tied] == own[tied]) & (index < target[tied, None])
        ahead[tied] += _count(earlier, dim=1)
    return ahead


def _count(holds: Tensor, dim: int) -> Tensor:
    """How many are true, int32. Summed as bytes: the default int64 of booleans is several times slower here."""
    return holds.view(torch.uint8).sum(dim=dim, dtype=torch.int32)


def _best_caption(scores: Tensor, rows: slice, owner: Tensor) -> Tensor:
    """For each image in `rows`, which of its captions comes first: highest score, then lowest index. [rows]."""
    captions = torch.nonzero((owner >= rows.start) & (owner < rows.stop)).squeeze(1)
    row = owner[captions] - rows.start
    own = scores[row, captions]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, own, "amax")
    at = captions.masked_fill(own < best[row], scores.shape[1])
    return captions.new_full((len(scores),), scores.shape[1]).scatter_reduce(0, row, at, "amin")
