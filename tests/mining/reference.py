"""FFF Eq. 1 written out densely in float64, element by element as the paper has it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.mining import Thresholds


def similarities(image: Tensor, text: Tensor, owner: Tensor, reduction: str) -> tuple[np.ndarray, ...]:
    """Sit [N, M], Sii replicated to [N, M], and Stt reduced from the whole M x M matrix to [N, M]."""
    x, c, own = image.double().numpy(), text.double().numpy(), owner.numpy()
    sit, sii, full = x @ c.T, (x @ x.T)[:, own], c @ c.T
    stt = np.full(sit.shape, -np.inf)
    for i in range(len(x)):
        mine = own == i
        for j in range(len(c)):
            if not mine.any():
                continue
            column = full[mine][:, own == own[j]] if reduction == "block_mean" else full[mine, j]
            stt[i, j] = column.max() if reduction == "max" else column.mean()
    return sit, sii, stt


def literal(thresholds: Thresholds, image: Tensor, text: Tensor, owner: Tensor) -> np.ndarray:
    """The final positives Y [N, M]."""
    t = thresholds
    sit, sii, stt = similarities(image, text, owner, t.text_text_reduction)
    ground_truth = owner.numpy()[None, :] == np.arange(len(image))[:, None]
    never = np.zeros_like(ground_truth)
    clause1 = never if t.image_text is None else sit > t.image_text
    clause2 = never if t.image_image is None else sii > t.image_image
    guard = ~never if t.image_text_guard is None else sit > t.image_text_guard
    clause3 = never if t.text_text is None else (stt > t.text_text) & guard
    positives = clause1 | clause2 | clause3
    if t.drop_below is not None:
        return np.where(ground_truth, sit > t.drop_below, positives)
    return positives | ground_truth if t.keep_ground_truth else positives


def features(seed: int, images: int, counts: list[int], width: int, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows around a few common directions, so that every clause has something to find; owner unsorted."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=random)
    owner = torch.repeat_interleave(torch.arange(images), torch.tensor(counts))
    owner = owner[torch.randperm(len(owner), generator=random)]
    image = centres[torch.arange(images) % clusters] + 0.5 * torch.randn(images, width, generator=random)
    text = centres[owner % clusters] + 0.5 * torch.randn(len(owner), width, generator=random)
    return torch.nn.functional.normalize(image, dim=1), torch.nn.functional.normalize(text, dim=1), owner
