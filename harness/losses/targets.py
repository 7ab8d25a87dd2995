"""What a frozen teacher says the target is, without holding an N x M tensor; but a transport plan is held.

A target enters a softmax loss only through <target, z> = t <I_i, sum_j target_ij T_j>: what is needed is the target's
mean of the other side's features. For a softmax target that is attention with the teacher's features as queries and
keys and the student's as values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.losses.chunks import ChunkPass, Pairs, exclude, merge_log_sums, precise, product, scores

__all__ = ["Affinity", "TransportPlan", "mean_captions", "plan_mean", "soft_mean", "transport_plans", "weighted_mean"]


@dataclass(frozen=True)
class Affinity:
    """A teacher's affinity <a_i, b_j> of image i and caption j, in factors."""

    image: Tensor
    """a [N, f]."""
    text: Tensor
    """b [M, f]."""

    @classmethod
    def of(cls, kind: str, teacher: tuple[Tensor, Tensor], owner: Tensor) -> Affinity:
        """`image_text`: the pair's cosine. `image_image`: of image i with j's image. `text_text`: of caption j with
        image i's captions, on average: the mean caption embedding of i stands for them, not renormalised.
        """
        image, text = teacher
        match kind:
            case "image_text":
                return cls(image, text)
            case "image_image":
                return cls(image, image[owner])
            case _:
                return cls(mean_captions(text, owner, len(image)), text)

    @classmethod
    def sum(cls, parts: list[tuple[float, Affinity]]) -> Affinity:
        """The weighted sum of several affinities."""
        image = torch.cat([weight * part.image for weight, part in parts], dim=1)
        return cls(image, torch.cat([part.text for _, part in parts], dim=1))


def mean_captions(text: Tensor, owner: Tensor, images: int) -> Tensor:
    """The mean embedding of each image's captions [N, e]; zero for an image without one."""
    total = torch.zeros(images, text.shape[1], dtype=precise(text.dtype), device=text.device)
    total.index_add_(0, owner, text.to(total.dtype))
    count = total.new_zeros(images).index_add_(0, owner, total.new_ones(len(owner)))
    return (total / count.clamp(min=1)[:, None]).to(text.dtype)


def weighted_mean(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij value_j / sum_j w_ij with w_ij = 1/2 + <query_i, key_j> / 2: low rank, no pass over pairs.

    Args:
        query: [A, e], frozen.
        key: [B, e], frozen.
        value: [B, d].

    Returns:
        [A, d].
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    total = value.sum(0) + query @ (key.t() @ value)
    return total / (len(key) + query @ key.sum(0))[:, None]


def soft_mean(affinity: tuple[Tensor, Tensor, float], value: Tensor, sweep: ChunkPass) -> Tensor:
    """sum_j softmax_j(scale <query_i, key_j>) value_j: [A, d], differentiable in `value`.

    Args:
        affinity: query [A, e], key [B, e] and scale; frozen.
        value: [B, d].
        sweep: ranks and strip size.
    """
    return _SoftMean.apply(value, affinity, sweep)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TransportPlan:
    """A transport plan exp(logits + of_image_i + of_text_j) between images and captions."""

    logits: Tensor
    """[M / ranks, N] of this rank's share of the captions: it is iterated on, so it is held."""
    of_image: Tensor
    """[N]."""
    of_text: Tensor
    """[M]."""

    def strip(self, strip: slice, sweep: ChunkPass) -> Tensor:
        """The plan of some captions [c, N]."""
        logits = self.logits[_held(strip, len(self.of_text), sweep)]
        return (logits + self.of_image).add_(self.of_text[strip, None]).exp_()


@torch.no_grad()
def transport_plans(
    affinity: Affinity, entropy: float, iterations: int, barred: Pairs, sweep: ChunkPass
) -> tuple[TransportPlan, TransportPlan]:
    """Sinkhorn's plans (Cuturi, NeurIPS 2013) with equal masses: one whose images sum to 1, one whose captions do.

    As OTTER's code has them: each of `iterations` normalises the one's images and then captions, the other's captions
    and then images, and at the end the one's images, the other's captions are normalised once more. In the log domain.

    Args:
        affinity: of N images and M captions.
        entropy: the regularisation lambda.
        iterations: how many.
        barred: pairs (images [P], captions [P]) without mass.
        sweep: ranks and strip size.
    """
    order = barred[1].argsort(stable=True)
    pairs = (barred[0][order], barred[1][order])
    start, stop = sweep.ranks.share(len(affinity.text))
    logits = torch.empty(stop - start, len(affinity.image), dtype=precise(affinity.text.dtype), device=order.device)
    for strip in sweep.strips(affinity.image, affinity.text):
        part = exclude(scores(affinity.image, affinity.text[strip], 1 / entropy), strip, pairs)
        logits[_held(strip, len(affinity.text), sweep)] = part
    plans = []
    for images_first in (True, False):
        plan = TransportPlan(logits, logits.new_zeros(logits.shape[1]), logits.new_zeros(len(affinity.text)))
        for half in range(2 * iterations + 1):
            plan = _balanced(plan, images=(half % 2 == 0) == images_first, sweep=sweep)
        plans.append(plan)
    return plans[0], plans[1]


def plan_mean(plan: TransportPlan, value: Tensor, sweep: ChunkPass, of_images: bool) -> Tensor:
    """For every image the plan's mean of the captions' `value` [M, d], or for every caption that of the images' [N, d].

    Differentiable in `value`.
    """
    return _PlanMean.apply(value, plan, sweep, of_images)  # type: ignore[no-any-return]


def _held(strip: slice, captions: int, sweep: ChunkPass) -> slice:
    """Where a rank's logits hold a strip of the captions."""
    first = sweep.ranks.share(captions)[0]
    return slice(strip.start - first, strip.stop - first)


def _balanced(plan: TransportPlan, images: bool, sweep: ChunkPass) -> TransportPlan:
    """The plan with each image's, or each caption's, sum made 1."""
    of_text = torch.zeros_like(plan.of_text)
    sums = torch.full_like(plan.of_image, -torch.inf)
    for strip in sweep.strips(plan.of_image, plan.of_text):
        logits = plan.logits[_held(strip, len(of_text), sweep)]
        if images:
            sums = torch.logaddexp(sums, (logits + plan.of_text[strip, None]).logsumexp(0))
        else:
            of_text[strip] = -(logits + plan.of_image).logsumexp(1)
    if images:
        return replace(plan, of_image=-merge_log_sums(sums, sweep.ranks))
    return replace(plan, of_text=sweep.ranks.all_reduce_sum(of_text))


class _SoftMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, affinity: tuple[Tensor, Tensor, float], sweep: ChunkPass) -> Tensor:
        ctx.affinity, ctx.sweep, ctx.shape, ctx.dtype = affinity, sweep, value.shape, value.dtype
        query, key, scale = affinity
        mean = torch.zeros(len(query), value.shape[1], dtype=precise(value.dtype), device=value.device)
        for strip in sweep.strips(key, query):
            mean[strip] = product(scores(key, query[strip], scale).softmax(1).to(value.dtype), value)
        return sweep.ranks.all_reduce_sum(mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, scale = ctx.affinity
        grad = torch.zeros(ctx.shape, dtype=grads[0].dtype, device=grads[0].device)
        for strip in ctx.sweep.strips(key, query):
            weights = scores(key, query[strip], scale).softmax(1).to(ctx.dtype)
            grad += product(weights.t(), grads[0][strip].to(ctx.dtype))
        return ctx.sweep.ranks.all_reduce_sum(grad).to(ctx.dtype), None, None


class _PlanMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, plan: TransportPlan, sweep: ChunkPass, of_images: bool) -> Tensor:
        ctx.plan, ctx.sweep, ctx.of_images, ctx.dtype = plan, sweep, of_images, value.dtype
        return _through(plan, value, sweep, of_images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = _through(ctx.plan, grads[0].to(ctx.dtype), ctx.sweep, not ctx.of_images)
        return grad.to(ctx.dtype), None, None, None


def _through(plan: TransportPlan, value: Tensor, sweep: ChunkPass, to_images: bool) -> Tensor:
    """The plan times the captions' `value` [M, d]: [N, d]; or transposed, times the images' [N, d]: [M, d]."""
    length = len(plan.of_image) if to_images else len(plan.of_text)
    total = torch.zeros(length, value.shape[1], dtype=precise(value.dtype), device=value.device)
    for strip in sweep.strips(plan.of_image, plan.of_text):
        weights = plan.strip(strip, sweep).to(value.dtype)
        if to_images:
            total += product(weights.t(), value[strip])
        else:
            total[strip] = product(weights, value)
    return sweep.ranks.all_reduce_sum(total)
