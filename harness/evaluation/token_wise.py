"""FILIP's token-wise similarity of images and texts (Yao et al., ICLR 2022, equations 3 and 4), in blocks.

    s^I(i, j) = mean over the patches of image i of their highest cosine with a token of text j
    s^T(i, j) = mean over the tokens of text j of their highest cosine with a patch of image i

Images look for texts by s^I, texts for images by s^T, each as the loss `filip` trains it. Tokens are those of the loss:
all patches, and a text's tokens up to its end. A class with several prompts has the mean of their similarities (the
paper's "Prompt ensemble and templates": the tokens of different prompts do not match, so there is no mean feature).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_TOKENS_AT_ONCE = 2**20
"""Tokens of texts whose features are held together: 2 GiB at d = 512. ImageNet's 80,000 prompts have about as many."""
COSINES_AT_ONCE = 2**24
"""Cosines of patches and tokens of one block: 64 MiB."""
NEEDS = ("token-wise similarity", 'evaluation.similarity = "pooled"')
"""What an error calls the need of features of tokens, and what does without."""


@dataclass(frozen=True, eq=False)
class TextTokens:
    """Features of the tokens of M texts, without padding."""

    features: Tensor
    """[T, d] unit rows, one text after another, shorter texts first."""
    lengths: Tensor
    """[M] how many tokens each of them has, ascending; on the CPU."""
    order: Tensor
    """[M] which text each of them is; on the CPU."""

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Texts of one length: which they are, [m], and their tokens' features [m, l, d]."""
        first = row = 0
        lengths, counts = torch.unique_consecutive(self.lengths, return_counts=True)
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            rows = self.features[row : row + length * count]
            yield self.order[first : first + count], rows.view(count, length, -1)
            first, row = first + count, row + length * count


def similarities(patches: Tensor, texts: TextTokens, *, both: bool) -> Tensor:
    """s^I, and s^T behind it if `both`, [n, 1 or 2, M], of images [n, p, d] (unit rows) and texts; M in their order."""
    images, count, width = patches.shape
    found = patches.new_empty(images, 1 + both, len(texts.order))
    for of, tokens in texts.groups():
        together = max(1, COSINES_AT_ONCE // (images * count * tokens.shape[1]))
        for some, features in zip(torch.split(of, together), torch.split(tokens, together), strict=True):
            cosines = patches.reshape(-1, width) @ features.reshape(-1, width).T
            cosines = cosines.view(images, count, len(some), -1)
            place = some.to(found.device)
            found[:, 0, place] = cosines.amax(dim=3).mean(dim=1)
            if both:
                found[:, 1, place] = cosines.amax(dim=1).mean(dim=2)
    return found


def averaged(scores: Tensor, together: int) -> Tensor:
    """[n, k, M] to [n, k, M / together]: the mean over every `together` consecutive texts."""
    return scores.view(*scores.shape[:2], -1, together).mean(dim=3)


def text_strips(lengths: Sequence[int], together: int, tokens: int = TEXT_TOKENS_AT_ONCE) -> Iterator[slice]:
    """Consecutive texts with at most so many `tokens`, or `together` texts; each strip has a multiple of `together`."""
    start = held = 0
    for first in range(0, len(lengths), together):
        needed = sum(lengths[first : first + together])
        if first > start and held + needed > tokens:
            yield slice(start, first)
            start, held = first, 0
        held += needed
    yield slice(start, len(lengths))
