"""MP-NCE: all views of a pair against those of other pairs, with a similarity for each combination of modalities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from harness.config.loss import MPNCE
from harness.losses.base import Logs, Objective, PairBatch, objectives
from harness.losses.chunks import ChunkPass, Pairs, log_normalisers, pair_cosines

__all__ = ["MPNCEObjective"]


@objectives.register(MPNCE)
class MPNCEObjective(Objective):
    """MP-NCE with UniCLIP's domain-dependent similarity (Lee et al., NeurIPS 2022), without its augmentation encoder.

    Each embedding is contrasted with every other one of its pair alone: that one against the embeddings of all other
    pairs. `log_scale` is the factor between images and captions; `log_scales` and `offsets` [2] are those between
    images and between captions. A third offset would change nothing: a softmax ignores what all its scores share.
    """

    def __init__(self, spec: MPNCE, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.images, self.texts = spec.images, spec.texts
        starts = torch.tensor([spec.image_logit_scale, spec.text_logit_scale], dtype=torch.float32).log()
        self.log_scales = nn.Parameter(starts, requires_grad=spec.learn_logit_scale)
        self.offsets = nn.Parameter(torch.zeros(2), requires_grad=spec.learn_offsets)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        image, of_image = _views(batch.image, batch.image_views, self.images)
        text, view_of = _views(batch.text, batch.text_views, self.texts)
        of_text = batch.owner[view_of]
        factors = self.sweep.ranks.agreed(self.log_scales).exp().to(scale.dtype)
        offsets = self.sweep.ranks.agreed(self.offsets).to(scale.dtype)

        across = _pairs(of_image, of_text)
        to_texts, to_images = log_normalisers(image, text, scale, self.sweep, across)
        z = scale * pair_cosines(image, text, *across)
        sides = {
            "image": (image, of_image, to_texts, across[0]),
            "text": (text, of_text, to_images, across[1]),
        }
        terms = {}
        for number, (name, (own, group, others, anchors)) in enumerate(sides.items()):
            within = _pairs(group, group)
            negatives, _ = log_normalisers(own, own, factors[number], self.sweep, within)
            negatives = torch.logaddexp(negatives + offsets[number], others)
            z_within = factors[number] * pair_cosines(own, own, *within) + offsets[number]
            is_other = within[0] != within[1]  # a weight, not a mask: a GPU would wait for the number of pairs
            positives = _tally(within[0], own) - 1 + _tally(anchors, own)
            for other, z_of, row, weight in ((name, z_within, within[0], is_other), (_OTHER[name], z, anchors, 1)):
                # log (exp z + sum over negatives) - z, of each positive alone
                cost = -F.logsigmoid(z_of - negatives[row]) / positives[row].clamp(min=1)
                terms[f"{name}_to_{other}"] = (weight * cost).sum() / (len(image) + len(text))
        logs: Logs = {f"{name}_logit_scale": factors[number].detach() for number, name in enumerate(sides)}
        return terms, logs | {f"{name}_offset": offsets[number].detach().clone() for number, name in enumerate(sides)}

    @torch.no_grad()
    def clamp_(self) -> None:
        """As in Objective, for all three factors."""
        super().clamp_()
        if self.max_log_scale < math.inf:
            self.log_scales.clamp_(max=self.max_log_scale)


_OTHER = {"image": "text", "text": "image"}


def _views(features: Tensor, views: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """`features` [n, d] with their first `count` further views [n (1 + count), d], and the row that each is of."""
    rows = torch.arange(len(features), device=features.device)
    if not count:
        return features, rows
    if views is None:
        raise ValueError("the loss needs further views")
    every = torch.cat([features[:, None], views[:, :count]], dim=1)
    return every.flatten(0, 1), rows.repeat_interleave(1 + count)


def _pairs(a: Tensor, b: Tensor) -> Pairs:
    """All (i, j) with a[i] == b[j], of groups `a` [n] and `b` [m], in the order of i."""
    ordered, order = b.sort(stable=True)
    first = torch.searchsorted(ordered, a)
    counts = torch.searchsorted(ordered, a, right=True) - first
    rows = torch.arange(len(a), device=a.device).repeat_interleave(counts)
    # within the run of i's equals in b: the place of each pair, less that of i's first one
    place = torch.arange(len(rows), device=a.device) - (counts.cumsum(0) - counts)[rows]
    return rows, order[first[rows] + place]


def _tally(rows: Tensor, of: Tensor) -> Tensor:
    """How often each row of `of` [n, d] is among `rows`, [n]."""
    return rows.new_zeros(len(of)).index_add(0, rows, torch.ones_like(rows))
