"""Pair tasks: which images and texts of a group a model matches, as Winoground and SugarCrepe define it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.measured import Selected
from harness.evaluation.metrics import Index

if TYPE_CHECKING:  # metrics of what was measured before need no torch
    from torch import Tensor

PAIRS_AT_ONCE = 2**15


def selected(images: Tensor, texts: Tensor, groups: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Selected:
    """What a model chooses in each of G groups, from unit features of images [N, d] and texts [U, d].

    Text i of a group describes its image i; further ones describe none. An image's text, or a text's image, is found
    where its score is higher than every other of the group: equal scores count as wrong, as in the authors' code.

    Args:
        groups: for each group, the rows of its images and of its texts.
    """
    import torch

    rows = np.array([(image, text) for of, described in groups for image in of for text in described])
    scores = _scores(images, texts, torch.from_numpy(rows).to(images.device))
    counts = np.array([(len(of), len(described)) for of, described in groups])
    found_texts, found_images = np.ones(len(groups), dtype=bool), np.ones(len(groups), dtype=bool)
    end = np.cumsum(counts.prod(axis=1))
    for group, (shape, last) in enumerate(zip(counts, end, strict=True)):
        score = scores[last - shape.prod() : last].reshape(shape)
        for own in range(min(shape)):
            found_texts[group] &= (np.delete(score[own], own) < score[own, own]).all()
            found_images[group] &= (np.delete(score[:, own], own) < score[own, own]).all()
    first = np.array([of[0] for of, _ in groups], dtype=np.int64)
    return Selected(found_texts, found_images, counts[:, 1], counts[:, 0], first)


def chances(texts: Index, images: Index) -> dict[str, NDArray[np.float64]]:
    """What each metric is worth in each group [G] to a model whose scores are drawn at random.

    With two images and two texts, each image has its text in 1 of 4 cases, and all is right in 1 of 6: both own scores
    are higher than both others.
    """
    one = (texts == 1) | (images == 1)
    return {
        "text_acc": np.where(one, 1 / texts, 1 / 4),
        "image_acc": np.where(one, 1 / images, 1 / 4),
        "acc": np.where(one, 1 / (texts * images), 1 / 6),
    }


def _scores(images: Tensor, texts: Tensor, rows: Tensor) -> NDArray[np.float32]:
    """[P] of image and text `rows` [P, 2]. Sums of products, so that equal features have equal scores."""
    import torch

    parts = [(images[some[:, 0]] * texts[some[:, 1]]).sum(dim=1) for some in torch.split(rows, PAIRS_AT_ONCE)]
    found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return found
