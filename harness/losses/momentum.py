"""Losses against features of momentum towers, and of queues: MoCo across modalities, ALBEF, TCL, nearest neighbours.

Without a gradient in what is compared with, every term is a log-sum minus the score of one target vector.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from harness.config.loss import ALBEF, TCL, MoCo, NearestNeighbour
from harness.config.losses.momentum import DistillationSpec, QueueSpec
from harness.losses.base import Logs, Objective, PairBatch, Positives, objectives
from harness.losses.chunks import ChunkPass, pair_cosines
from harness.losses.queues import FeatureQueue, Keys, log_sums, nearest, soft_targets
from harness.losses.softmax import Terms, clip_terms, log_mean_exp
from harness.losses.targets import mean_captions

__all__ = ["ALBEFObjective", "MoCoObjective", "NearestNeighbourObjective", "TCLObjective"]

_SCORES_AT_ONCE = 2**24
_NOTHING = -1e8
"""The logit of a pair that takes no part. Infinity would make the gradient of an empty sum undefined."""


class _Queued(Objective):
    """An objective with a queue of image features and one of text features."""

    images: FeatureQueue
    texts: FeatureQueue

    def __init__(self, spec: QueueSpec, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.queue_size = spec.queue_size

    def build_heads(self, width: int, make: torch.Generator) -> None:  # noqa: ARG002 - queues start empty
        """The queues."""
        self.images, self.texts = FeatureQueue(self.queue_size, width), FeatureQueue(self.queue_size, width)

    def _hold(self, image: Tensor, text: Tensor) -> None:
        """In training, the step's features [N, d] and [M, d] will enter the queues."""
        if self.training:
            self.images.hold(image)
            self.texts.hold(text)


@objectives.register(MoCo)
class MoCoObjective(_Queued):
    """MoCo (He et al., CVPR 2020) across modalities, as in BriVL (Huo et al., 2021).

    Image i against its own captions by the momentum towers and the text queue, caption j against its own image by the
    momentum towers and the image queue. Others of the batch are no negatives; an empty queue has none, and the loss of
    one caption per image is 0.
    """

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        image, text = _momentum(batch)
        caption = torch.arange(len(text), device=text.device)
        by_image = scale * pair_cosines(batch.image, text, batch.owner, caption)
        by_text = scale * pair_cosines(batch.text, image, caption, batch.owner)
        count = torch.bincount(batch.owner, minlength=len(image)).to(by_image.dtype)
        own = log_mean_exp(by_image, batch.owner, count) + count.log()
        target = torch.zeros_like(own).index_add(0, batch.owner, by_image / count[batch.owner])
        of_image = torch.logaddexp(own, log_sums(batch.image, scale, [self.texts.keys], self.sweep)) - target
        of_text = torch.logaddexp(by_text, log_sums(batch.text, scale, [self.images.keys], self.sweep)) - by_text
        self._hold(image, text)
        return {"image_to_text": of_image.mean() / 2, "text_to_image": of_text.mean() / 2}, {}


class _Distilled(_Queued):
    """Cross-entropy against momentum features and queues, to targets with a share of the momentum towers' softmax."""

    has_constant_factors: ClassVar[bool] = True

    def __init__(self, spec: DistillationSpec, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.distillation_at = spec.distillation_at

    def _cross_modal(self, batch: PairBatch, image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """ALBEF's two directions, given the momentum features of images [N, d] and captions [M, d]."""
        share = self.distillation_at(batch.epoch)
        images, texts = [Keys(image), self.images.keys], [Keys(text), self.texts.keys]
        own_text, own_image = mean_captions(text, batch.owner, len(image)), image[batch.owner]
        if share:
            fixed = scale.detach()
            own_text = torch.lerp(own_text.to(scale.dtype), soft_targets(image, fixed, texts, self.sweep), share)
            own_image = torch.lerp(own_image.to(scale.dtype), soft_targets(text, fixed, images, self.sweep), share)
        return self._against(batch.image, own_text, texts, scale), self._against(batch.text, own_image, images, scale)

    def _against(self, query: Tensor, target: Tensor, keys: list[Keys], scale: Tensor) -> Tensor:
        """Mean over `query` [A, d] of the log-sum over the keys, minus the score of the target vector [A, d]."""
        hit = scale * (query.to(scale.dtype) * target.to(scale.dtype)).sum(1)
        return (log_sums(query, scale, keys, self.sweep) - hit).mean()


@objectives.register(ALBEF)
class ALBEFObjective(_Distilled):
    """ALBEF's image-text contrast (Li et al., NeurIPS 2021): both directions against the momentum towers' features of
    the batch and the queues; targets (1 - a) ground truth + a softmax of the momentum towers' own scores.
    """

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        image, text = _momentum(batch)
        by_image, by_text = self._cross_modal(batch, image, text, scale)
        self._hold(image, text)
        terms = {"image_to_text": by_image / 2, "text_to_image": by_text / 2}
        return terms, {"distillation": self.distillation_at(batch.epoch)}


@objectives.register(TCL)
class TCLObjective(_Distilled):
    """TCL's contrasts of whole images and captions (Yang et al., CVPR 2022): ALBEF's two, and in each modality the
    student's feature against the momentum towers' and the queue. The momentum image is a further view.

    With `local`, also the student's whole feature against the momentum towers' patches and tokens, in the batch alone.
    """

    def __init__(self, spec: TCL, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.local = spec.local

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        if batch.momentum_views is None or batch.momentum_text is None:
            raise ValueError("tcl needs the momentum towers' features of a further view and of the captions")
        view, text = batch.momentum_views[:, 0], batch.momentum_text
        by_image, by_text = self._cross_modal(batch, view, text, scale)
        same_image = mean_captions(text, batch.owner, len(view))[batch.owner]
        terms = {
            "image_to_text": by_image,
            "text_to_image": by_text,
            "image_to_image": self._against(batch.image, view, [Keys(view), self.images.keys], scale),
            "text_to_text": self._against(batch.text, same_image, [Keys(text), self.texts.keys], scale),
        }
        if self.local:
            terms |= self._local(batch, scale)
        self._hold(view, text)
        terms = {name: term / len(terms) for name, term in terms.items()}
        return terms, {"distillation": self.distillation_at(batch.epoch)}

    def _local(self, batch: PairBatch, scale: Tensor) -> Terms:
        """`in_batch_g2l_loss` of the published code, of images and of captions."""
        patches, tokens, mask = batch.momentum_patches, batch.momentum_tokens, batch.momentum_mask
        if patches is None or tokens is None or mask is None:
            raise ValueError("tcl's local terms need the momentum towers' features of patches and tokens")
        pooled = pooled_patches(patches)
        every = torch.arange(len(pooled), device=pooled.device)
        whole = torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device)
        return {
            "image_to_patches": self._to_parts(batch.image, pooled, whole, every, scale),
            "text_to_tokens": self._to_parts(batch.text, tokens, mask, batch.owner, scale),
        }

    def _to_parts(self, query: Tensor, parts: Tensor, mask: Tensor, owner: Tensor, scale: Tensor) -> Tensor:
        """Mean over `query` [A, d], and over the own `parts` [A, p, d] of each, of the cross-entropy of this part
        against all parts of other images; `owner` [A]. Of parts without `mask` [A, p] there are none.
        """
        query, parts = query.to(scale.dtype), parts.to(scale.dtype)
        size = self.sweep.chunk or max(1, _SCORES_AT_ONCE // (len(query) * parts.shape[1]))
        strips = zip(*(torch.split(one, size) for one in (parts, mask, owner)), strict=True)
        sums = [checkpoint(_others, query, owner, *strip, scale, use_reentrant=False) for strip in strips]
        others = torch.stack(sums).logsumexp(0)
        own = scale * torch.einsum("ad,apd->ap", query, parts)
        losses = (torch.logaddexp(own, others[:, None]) - own).masked_fill(~mask, 0)
        return (losses.sum(1) / mask.sum(1).clamp(min=1)).mean()


def pooled_patches(patches: Tensor) -> Tensor:
    """Means of squares of patches, [N, p, d] to [N, q, d], as in TCL's `patch_pooling`.

    A grid of g x g patches is cut into squares of side int(sqrt(g)): 16 x 16 patches become 4 x 4 means. The means are
    not normalised. The code holds for grids whose side is a square number; on others, patches beyond the last whole
    square are left out here.

    Raises:
        ValueError: the grid is not square.
    """
    images, count, width = patches.shape
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"tcl's local terms pool a square grid of patches; {count} patches form none")
    grid = patches.reshape(images, side, side, width).permute(0, 3, 1, 2)
    step = math.isqrt(side)
    return F.avg_pool2d(grid, step, step).flatten(2).transpose(1, 2)


def _others(query: Tensor, owner: Tensor, parts: Tensor, mask: Tensor, of: Tensor, scale: Tensor) -> Tensor:
    """Log-sums [A] over the parts [c, p, d] of images `of` [c] that are not a query's own; `owner` [A]."""
    z = scale * torch.einsum("ad,cpd->acp", query, parts)
    left_out = (owner[:, None] == of)[:, :, None] | ~mask
    return z.masked_fill(left_out, _NOTHING).flatten(1).logsumexp(1)


@objectives.register(NearestNeighbour)
class NearestNeighbourObjective(Objective):
    """DeCLIP's nearest-neighbour supervision (Li et al., ICLR 2022): CLIP's loss with each caption replaced by the
    student's feature in the queue that is nearest to it; 0 while the queue is empty.
    """

    texts: FeatureQueue

    def __init__(self, spec: NearestNeighbour, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.queue_size, self.both = spec.queue_size, spec.directions == "both"

    def build_heads(self, width: int, make: torch.Generator) -> None:  # noqa: ARG002 - the queue starts empty
        """The queue."""
        self.texts = FeatureQueue(self.queue_size, width)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        found = nearest(batch.text.detach(), self.texts.keys, self.sweep)
        terms = clip_terms(batch.image, found, Positives.ground_truth(batch.owner), scale, self.sweep)
        if not self.both:
            terms = {"image_to_text": 2 * terms["image_to_text"]}
        if self.training:
            self.texts.hold(batch.text)
        is_filled = self.texts.taken > 0
        cosine = torch.where(is_filled, (found * batch.text.detach()).sum(1).mean(), 0)
        return {name: torch.where(is_filled, term, 0) for name, term in terms.items()}, {"neighbour_cosine": cosine}


def _momentum(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """The momentum towers' features of the images [N, d] and captions [M, d].

    Raises:
        ValueError: there are none.
    """
    if batch.momentum_image is None or batch.momentum_text is None:
        raise ValueError("the loss needs the momentum towers' features of images and captions")
    return batch.momentum_image, batch.momentum_text
