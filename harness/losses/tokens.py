"""Losses that compare tokens: FILIP's late interaction and DreamLIP's sub-caption grouping.

They are computed whole on every rank; their cost is that of all pairs of tokens, or of M x M pairs.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.config.loss import FILIP, DreamLIP
from harness.losses.base import Logs, Objective, PairBatch, Positives, objectives
from harness.losses.chunks import ChunkPass
from harness.losses.softmax import Terms, clip_terms

__all__ = ["DreamLIPObjective", "FILIPObjective"]

_STRIP_ELEMENTS = 2**24
_NOTHING = -1e8
"""The logit of a pair that a circle loss leaves out. Infinity would make the gradient of an empty sum undefined."""


@objectives.register(FILIP)
class FILIPObjective(Objective):
    """FILIP (Yao et al., ICLR 2022): CLIP's loss on token-wise similarities, and on pooled features beside it.

    s^I_ij = mean over i's patches of the best matching token of j; s^T_ij = mean over j's tokens of the best matching
    patch of i. Images are contrasted by s^I, captions by s^T; padding takes no part.
    """

    def __init__(self, spec: FILIP, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.pooled_weight = spec.pooled_weight

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        by_image, by_text = self._scores(batch, scale)
        own = batch.owner[None, :] == torch.arange(len(by_image), device=by_image.device)[:, None]
        target = own.to(scale.dtype)
        target = target / target.sum(1, keepdim=True).clamp(min=1)
        terms = {
            "image_to_text": F.cross_entropy(by_image, target) / 2,
            "text_to_image": F.cross_entropy(by_text.t(), batch.owner) / 2,
        }
        if self.pooled_weight:
            truth = Positives.ground_truth(batch.owner)
            pooled = clip_terms(batch.image, batch.text, truth, scale, self.sweep)
            terms["pooled"] = self.pooled_weight * (pooled["image_to_text"] + pooled["text_to_image"])
        return terms, {}

    def _scores(self, batch: PairBatch, scale: Tensor) -> tuple[Tensor, Tensor]:
        """t s^I and t s^T, each [N, M]."""
        image, text, mask = batch.image_tokens, batch.text_tokens, batch.text_mask
        if image is None or text is None or mask is None:
            raise ValueError("filip needs image tokens, text tokens and their mask")
        image, text = image.to(scale.dtype), text.to(scale.dtype)
        size = self.sweep.chunk or max(1, _STRIP_ELEMENTS // (image.shape[0] * image.shape[1] * text.shape[1]))
        strips = zip(torch.split(text, size), torch.split(mask, size), strict=True)
        parts = [checkpoint(_late_interaction, image, *strip, use_reentrant=False) for strip in strips]
        by_image, by_text = (scale * torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        return by_image, by_text


class DreamLIPObjective(Objective):
    """DreamLIP (Zheng et al., ECCV 2024): the mean of CLIP's losses of the k captions, and a local loss.

    Locally, each caption is contrasted, among all captions of the batch, with the patches of its own image grouped to
    it: weighted by their similarity to the caption, min-max normalised over the patches, those under a threshold left
    out. The local loss shares the temperature or has one of its own.
    """

    def __init__(self, spec: DreamLIP, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.weight, self.threshold = spec.local_weight, spec.threshold
        self.local_log_scale: nn.Parameter | None = None
        if spec.local_logit_scale != "shared":
            start = torch.tensor(math.log(spec.local_logit_scale), dtype=torch.float32)
            self.local_log_scale = nn.Parameter(start, requires_grad=spec.learn_logit_scale)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        if batch.image_tokens is None:
            raise ValueError("dreamlip needs image tokens")
        slots = [clip_terms(batch.image, text, own, scale, self.sweep) for text, own in batch.squares()]
        patches, text = batch.image_tokens.to(scale.dtype), batch.text.to(scale.dtype)
        threshold = 1 / patches.shape[1] if self.threshold == "uniform" else self.threshold
        size = self.sweep.chunk or max(1, _STRIP_ELEMENTS // (patches.shape[1] * patches.shape[2]))
        strips = zip(torch.split(text, size), torch.split(batch.owner, size), strict=True)
        grouped = [checkpoint(_grouped, patches, *strip, threshold, use_reentrant=False) for strip in strips]
        every = torch.arange(len(text), device=text.device)
        logs: Logs = {}
        local_scale = scale
        if self.local_log_scale is not None:
            local_scale = self.sweep.ranks.agreed(self.local_log_scale).exp().to(scale.dtype)
            logs["local_logit_scale"] = local_scale.detach()
        local = clip_terms(torch.cat(grouped), text, Positives(every, every), local_scale, self.sweep)
        return {
            "global": torch.stack([sum(slot.values(), scale.new_zeros(())) for slot in slots]).mean(),
            "local": self.weight * (local["image_to_text"] + local["text_to_image"]),
        }, logs

    @torch.no_grad()
    def clamp_(self) -> None:
        """As in Objective, for both factors."""
        super().clamp_()
        if self.local_log_scale is not None:
            self.local_log_scale.clamp_(max=self.max_log_scale)


class CircledDreamLIPObjective(DreamLIPObjective):
    """DreamLIP with its authors' circle loss (Sun et al., CVPR 2020) of each image and all captions of the batch.

    `pairwise_circleloss` of their `open_clip/loss.py`: with cosines s, own captions P and others Q of an image, the
    mean over images of softplus(log sum_P exp(-g a (s - 1 + m)) + log sum_Q exp(g b (s - m))), in which the weights
    a = max(1 + m - s, 0) and b = max(s + m, 0) get no gradient.
    """

    has_constant_factors: ClassVar[bool] = True

    def __init__(self, spec: DreamLIP, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.circle_weight, self.margin, self.gamma = spec.circle_weight, spec.circle_margin, spec.circle_gamma

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        terms, logs = super()._terms(batch, scale)
        image, text = batch.image.to(scale.dtype), batch.text.to(scale.dtype)
        size = self.sweep.chunk or max(1, _STRIP_ELEMENTS // len(image))
        strips = zip(torch.split(text, size), torch.split(batch.owner, size), strict=True)
        sums = [checkpoint(_circle, image, *strip, self.margin, self.gamma, use_reentrant=False) for strip in strips]
        own, others = (torch.stack(side).logsumexp(0) for side in zip(*sums, strict=True))
        return {**terms, "circle": self.circle_weight * F.softplus(own + others).mean()}, logs


@objectives.register(DreamLIP)
def dreamlip(spec: DreamLIP, sweep: ChunkPass) -> DreamLIPObjective:
    """DreamLIP's objective, with the circle loss where it has weight."""
    return (CircledDreamLIPObjective if spec.circle_weight else DreamLIPObjective)(spec, sweep)


def _circle(image: Tensor, text: Tensor, owner: Tensor, margin: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Of images [N, d], the two log-sums [N] over those of captions [c, d] that are theirs, and over the others."""
    cosines = image @ text.t()
    is_own = owner[None, :] == torch.arange(len(image), device=image.device)[:, None]
    fixed = cosines.detach()
    own = -gamma * (1 + margin - fixed).clamp(min=0) * (cosines - 1 + margin)
    others = gamma * (fixed + margin).clamp(min=0) * (cosines - margin)
    sums = (own.masked_fill(~is_own, _NOTHING), others.masked_fill(is_own, _NOTHING))
    return sums[0].logsumexp(1), sums[1].logsumexp(1)


def _late_interaction(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """s^I and s^T [N, c] of images [N, p, d] and captions [c, l, d] with mask [c, l]."""
    similarity = torch.einsum("npd,cld->ncpl", image, text)
    best_token = similarity.masked_fill(~mask[None, :, None, :], -torch.inf).amax(3)
    best_patch = similarity.amax(2).masked_fill(~mask[None], 0)
    return best_token.mean(2), best_patch.sum(2) / mask.sum(1)


def _grouped(patches: Tensor, text: Tensor, owner: Tensor, threshold: float) -> Tensor:
    """For captions [c, d] of images `owner` [c], their images' patches [N, p, d] grouped to them: [c, d] unit rows."""
    own = patches[owner]
    similarity = torch.einsum("cpd,cd->cp", own, text)
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    share = (similarity - low) / (high - low + 1e-10)
    share = torch.where(share < threshold, 0, share)
    weights = share / share.sum(1, keepdim=True).clamp(min=1e-10)
    return F.normalize(torch.einsum("cp,cpd->cd", weights, own), dim=1)
