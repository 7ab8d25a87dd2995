"""FFF Eq. 1 written out densely in float64, element by element as the paper has it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.mining import GROUND_TRUTH, IMAGE_IMAGE, IMAGE_TEXT, TEXT_TEXT, Thresholds

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Batch = tuple[Tensor, Tensor, Tensor]
"""Image features [N, e], caption features [M, e], owner [M]."""


def similarities(image: Tensor, text: Tensor, owner: Tensor, reduction: str) -> tuple[Floats, Floats, Floats]:
    """Sit [N, M], Sii replicated to [N, M], and Stt reduced from the whole M x M matrix to [N, M]."""
    x, c, own = image.double().numpy(), text.double().numpy(), owner.numpy()
    sit, sii, full = x @ c.T, (x @ x.T)[:, own], c @ c.T
    ground_truth = own[None, :] == np.arange(len(x))[:, None]
    stt = np.full(sit.shape, -np.inf)
    for i in np.flatnonzero(ground_truth.any(axis=1)):
        stt[i] = full[own == i].max(axis=0) if reduction == "max" else full[own == i].mean(axis=0)
    if reduction == "block_mean":
        blocks = [stt[:, own == i].mean(axis=1) if i in own else stt[:, 0] for i in range(len(x))]
        stt = np.stack(blocks, axis=1)[:, own]
    return sit, sii, stt


def literal(thresholds: Thresholds, image: Tensor, text: Tensor, owner: Tensor) -> npt.NDArray[np.uint8]:
    """The clauses that make each pair a positive [N, M], as in `Mined.clause`; 0 for a negative."""
    t = thresholds
    sit, sii, stt = similarities(image, text, owner, t.text_text_reduction)
    own = owner.numpy()[None, :] == np.arange(len(image))[:, None]
    never = np.zeros_like(own)
    by_sit = never if t.image_text is None else sit > t.image_text
    by_sii = never if t.image_image is None else sii > t.image_image
    guard = ~never if t.image_text_guard is None else sit > t.image_text_guard
    by_stt = never if t.text_text is None else (stt > t.text_text) & guard
    positive = by_sit | by_sii | by_stt
    if t.drop_below is not None:
        positive = np.where(own, sit > t.drop_below, positive)
    elif t.keep_ground_truth:
        positive |= own
    bits = by_sit * IMAGE_TEXT + by_sii * IMAGE_IMAGE + (by_stt & ~by_sit) * TEXT_TEXT + own * GROUND_TRUTH
    return np.where(positive, bits, 0).astype(np.uint8)


def features(seed: int, counts: list[int], width: int, clusters: int) -> Batch:
    """Unit rows around a few common directions, so that every clause has something to find; owner in any order."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=random)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    owner = owner[torch.randperm(len(owner), generator=random)]
    image = centres[torch.arange(len(counts)) % clusters] + 0.5 * torch.randn(len(counts), width, generator=random)
    text = centres[owner % clusters] + 0.5 * torch.randn(len(owner), width, generator=random)
    return torch.nn.functional.normalize(image, dim=1), torch.nn.functional.normalize(text, dim=1), owner
