"""Image and text retrieval with clip-benchmark's definitions, by counting who is ahead instead of sorting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SCORES_AT_ONCE = 2**21
"""Scores of one block: 8 MiB, small enough for the caches and large enough for the matrix product."""
BYTE = 255
"""Rows of one block at most: so many truths are counted in a byte."""
SCORES_KEPT = 2**27
"""Scores that are kept at most: 512 MiB, which is enough for COCO's 5,000 images and 25,000 captions."""


@dataclass(frozen=True, eq=False)
class RetrievalRanks:
    """Rank of the first hit of every query, from 1."""

    image_retrieval: Tensor
    """[M] for each caption, the rank of its image among the N images."""
    text_retrieval: Tensor
    """[N] for each image, the rank of the first of its captions among the M captions."""


@dataclass(frozen=True, eq=False)
class CaptionFeatures:
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


def retrieval_ranks(image_features: Tensor, captions: CaptionFeatures) -> RetrievalRanks:
    """Ranks for unit image features [N, d] and `captions`.

    Of candidates with equal scores the one with the lower index comes first. Recall@k is the share of ranks up to k,
    as in clip_benchmark.metrics.zeroshot_retrieval: a query counts when at least one match is among the top k. Up to
    SCORES_KEPT scores of captions in their images' order are kept, so that one matrix product serves both directions;
    beyond, they are made twice, in blocks.
    """
    ascending = bool((captions.owner.diff() >= 0).all())
    if ascending and len(image_features) * len(captions.features) <= SCORES_KEPT:
        return ranks_of_scores(image_features @ captions.features.T, captions)
    images_of_captions = []
    for rows in _blocks(len(captions.text), len(image_features)):
        scores = captions.features[captions.text[rows]] @ image_features.T
        images_of_captions.append(_ahead(scores, captions.owner[rows]) + 1)
    captions_of_images = [
        _first_caption_rank(image_features[rows] @ captions.features.T, rows, captions)
        for rows in _blocks(len(image_features), len(captions.text))
    ]
    return RetrievalRanks(torch.cat(images_of_captions), torch.cat(captions_of_images))


def ranks_of_scores(scores: Tensor, captions: CaptionFeatures, of_texts: Tensor | None = None) -> RetrievalRanks:
    """Ranks from the scores [N, U] of all images and different texts; owners of captions ascend.

    Args:
        of_texts: [N, U] the scores by which texts look for their images, where they differ from the images' `scores`.
    """
    of_texts = scores if of_texts is None else of_texts
    own = of_texts[captions.owner, captions.text]
    target, best = _best_captions(scores[captions.owner, captions.text], captions.owner, len(scores))
    images_ahead = torch.zeros_like(captions.owner, dtype=torch.int32)
    captions_ahead = []
    for rows in _blocks(len(scores), len(captions.text)):
        block = captions.of_captions(of_texts[rows])
        bounds = captions.owner.new_tensor([rows.start, rows.stop])
        first, last = torch.searchsorted(captions.owner, bounds).tolist()
        images_ahead += _images_ahead(block, own, rows, captions.owner, slice(first, last))
        block = block if of_texts is scores else captions.of_captions(scores[rows])
        captions_ahead.append(_captions_ahead(block, best[rows], target[rows], slice(first, last)))
    return RetrievalRanks(images_ahead + 1, torch.cat(captions_ahead) + 1)


def _images_ahead(scores: Tensor, own: Tensor, rows: slice, owner: Tensor, here: slice) -> Tensor:
    """How many of the images `rows` come before each caption's own, [M], for `scores` [rows, M] and `own` [M].

    An equal score is ahead where its image has the lower index. Owners ascend, so that one comparison of a score is
    enough for all captions but those of these very images, `here`.
    """
    index = torch.arange(rows.start, rows.stop, device=owner.device)
    equal = (scores[:, here] == own[here]) & (index[:, None] < owner[here])
    parts = [
        scores[:, : here.start] > own[: here.start],
        (scores[:, here] > own[here]) | equal,
        scores[:, here.stop :] >= own[here.stop :],
    ]
    return torch.cat([_count(part, dim=0) for part in parts])


def _captions_ahead(scores: Tensor, best: Tensor, target: Tensor, here: slice) -> Tensor:
    """How many captions come before `target` [rows], whose scores are `best` [rows], in each row of `scores` [rows, M].

    As in `_images_ahead`: the targets are among the captions `here`, so that one comparison is enough elsewhere.
    """
    index = torch.arange(here.start, here.stop, device=target.device)
    equal = (scores[:, here] == best[:, None]) & (index < target[:, None])
    parts = [
        scores[:, : here.start] >= best[:, None],
        (scores[:, here] > best[:, None]) | equal,
        scores[:, here.stop :] > best[:, None],
    ]
    return torch.stack([_count(part, dim=1) for part in parts]).sum(dim=0, dtype=torch.int32)


def _first_caption_rank(scores: Tensor, rows: slice, captions: CaptionFeatures) -> Tensor:
    """Rank of the first own caption of each of the images `rows`, for scores [rows, U] of the different texts."""
    scores = captions.of_captions(scores)
    among = torch.nonzero((captions.owner >= rows.start) & (captions.owner < rows.stop)).squeeze(1)
    row = captions.owner[among] - rows.start
    target, _ = _best_captions(scores[row, among], row, len(scores))
    return _ahead(scores, among[target]) + 1


def _blocks(queries: int, candidates: int) -> Iterator[slice]:
    rows = max(1, min(BYTE, SCORES_AT_ONCE // candidates))
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
    """How many are true, int32. A sum of bytes stays one while it fits: the default int64 is many times slower."""
    kept = torch.uint8 if holds.shape[dim] <= BYTE else torch.int32
    return holds.view(torch.uint8).sum(dim=dim, dtype=kept).to(torch.int32)


def _best_captions(own: Tensor, owner: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Which caption of each image comes first (highest score, then lowest place) and its score, [N] each.

    `own` [M] is each caption's score with its own image, `owner` [M]; every image has a caption.
    """
    best = own.new_full((images,), -torch.inf).scatter_reduce(0, owner, own, "amax")
    place = torch.arange(len(own), device=own.device).masked_fill(own < best[owner], len(own))
    return place.new_full((images,), len(own)).scatter_reduce(0, owner, place, "amin"), best
