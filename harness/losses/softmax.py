"""Losses made of log-normalisers and a target that is linear in the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.losses.base import Objective, PairBatch, Positives
from harness.losses.chunked import Sweep, log_normalisers, pair_cosines
from harness.spec.loss import InfoNCE

__all__ = ["InfoNCEObjective", "masked_mean", "sparse_cross_entropy"]


class InfoNCEObjective(Objective):
    """CLIP (Radford et al., ICML 2021), against the ground truth.

    With k captions per image either one softmax over all captions (`pooled`; each of an image's captions is a target
    with weight 1/k) or the mean of the k losses of one caption per image (`slotwise`).
    """

    def __init__(self, spec: InfoNCE, sweep: Sweep) -> None:
        super().__init__(spec, sweep)
        self.normaliser = spec.normaliser

    def _terms(self, batch: PairBatch, scale: Tensor) -> dict[str, Tensor]:
        if self.normaliser == "pooled":
            truth = Positives.ground_truth(batch.owner)
            both = sparse_cross_entropy(batch.image, batch.text, truth, scale, self.sweep)
        else:
            own = torch.arange(len(batch.image), device=batch.image.device)
            slots = [
                sparse_cross_entropy(batch.image, batch.text[slot], Positives(own, own), scale, self.sweep)
                for slot in batch.by_slot()
            ]
            both = (torch.stack([slot[0] for slot in slots]).mean(), torch.stack([slot[1] for slot in slots]).mean())
        return {"image_to_text": both[0] / 2, "text_to_image": both[1] / 2}


def sparse_cross_entropy(
    image: Tensor, text: Tensor, positives: Positives, scale: Tensor, sweep: Sweep
) -> tuple[Tensor, Tensor]:
    """Cross-entropy to the row-normalised positives: over the images' rows, and over the captions' columns.

    The mean is over the rows that have a positive; others have no target. Without any positive it is 0.
    """
    per_image, per_text = log_normalisers(image, text, scale, sweep)
    rows, cols = positives.rows, positives.cols
    z = scale * pair_cosines(image, text, rows, cols)
    in_row, in_col = (count.to(z.dtype) for count in positives.counts(len(image), len(text)))
    hit_row = torch.zeros_like(in_row).index_add(0, rows, z / in_row[rows])
    hit_col = torch.zeros_like(in_col).index_add(0, cols, z / in_col[cols])
    return masked_mean(per_image - hit_row, in_row > 0), masked_mean(per_text - hit_col, in_col > 0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` [n] where `mask` [n] is set, 0 where it is set nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
