"""What a frozen teacher says the target is, without holding an N x M tensor.

A target enters a softmax loss only through <target, z> = t <I_i, sum_j target_ij T_j>: what is needed is the target's
mean of the other side's features. For a softmax target that is attention with the teacher's features as queries and
keys and the student's as values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.losses.chunked import Pairs, Sweep, exclude, merge_log_sums, precise, product, scores

__all__ = ["Affinity", "mean_captions", "soft_mean", "transport_bias", "weighted_mean"]


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


def soft_mean(
    affinity: tuple[Tensor, Tensor, float],
    value: Tensor,
    sweep: Sweep,
    key_bias: Tensor | None = None,
    excluded: Pairs | None = None,
) -> Tensor:
    """sum_j softmax_j(scale <query_i, key_j> + key_bias_j) value_j: [A, d], differentiable in `value`.

    Args:
        affinity: query [A, e], key [B, e] and scale; frozen.
        value: [B, d].
        sweep: ranks and strip size.
        key_bias: [B].
        excluded: (queries [P], keys [P]) of probability zero; a query with nothing left gets a zero mean.
    """
    query, key, scale = affinity
    bias = value.new_zeros(len(key), dtype=precise(value.dtype)) if key_bias is None else key_bias
    none = torch.empty(0, dtype=torch.long, device=value.device)
    keys, queries = excluded[::-1] if excluded else (none, none)
    order = queries.argsort(stable=True)
    return _SoftMean.apply(value, (query, key, scale, bias), (keys[order], queries[order]), sweep)  # type: ignore[no-any-return]


class _SoftMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, affinity: tuple[Tensor, Tensor, float, Tensor], excluded: Pairs, sweep: Sweep
    ) -> Tensor:
        ctx.affinity, ctx.excluded, ctx.sweep = affinity, excluded, sweep
        ctx.shape, ctx.dtype = value.shape, value.dtype
        mean = torch.zeros(len(affinity[0]), value.shape[1], dtype=precise(value.dtype), device=value.device)
        for strip in sweep.strips(affinity[1], affinity[0]):
            mean[strip] = product(_weights(affinity, strip, excluded).to(value.dtype), value)
        return sweep.ranks.add(mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = torch.zeros(ctx.shape, dtype=grads[0].dtype, device=grads[0].device)
        for strip in ctx.sweep.strips(ctx.affinity[1], ctx.affinity[0]):
            weights = _weights(ctx.affinity, strip, ctx.excluded).to(ctx.dtype)
            grad += product(weights.t(), grads[0][strip].to(ctx.dtype))
        return ctx.sweep.ranks.add(grad).to(ctx.dtype), None, None, None


def _weights(affinity: tuple[Tensor, Tensor, float, Tensor], strip: slice, excluded: Pairs) -> Tensor:
    """The softmax over keys [q, B] of a strip of queries."""
    query, key, scale, bias = affinity
    logits = exclude(scores(key, query[strip], scale).add_(bias), strip, excluded)
    normaliser = logits.logsumexp(1, keepdim=True)
    return (logits - torch.where(normaliser == -torch.inf, torch.inf, normaliser)).exp_()


@torch.no_grad()
def transport_bias(affinity: tuple[Tensor, Tensor, float], iterations: int, excluded: Pairs, sweep: Sweep) -> Tensor:
    """Sinkhorn's column potential v [B]: softmax_b(scale <rows_a, cols_b> + v_b) are the rows of the transport plan.

    Each iteration normalises the rows and then the columns to equal mass (Cuturi, NeurIPS 2013), in the log domain;
    the plan's rows are normalised once more by the softmax. Rows and columns are uniform.

    Args:
        affinity: rows [A, e], cols [B, e] and scale 1/lambda.
        iterations: how many.
        excluded: (rows [P], cols [P]) without mass.
        sweep: ranks and strip size.
    """
    rows, cols, scale = affinity
    order = excluded[1].argsort(stable=True)
    barred = (excluded[0][order], excluded[1][order])
    potential = torch.zeros(len(cols), dtype=precise(cols.dtype), device=cols.device)
    row_sums = potential.new_zeros(len(rows))
    for iteration in range(iterations + 1):
        sums = torch.full_like(row_sums, -torch.inf)
        for strip in sweep.strips(rows, cols):
            logits = exclude(scores(rows, cols[strip], scale), strip, barred)
            if iteration:
                potential[strip] = -(logits - row_sums).logsumexp(1)
            sums = torch.logaddexp(sums, (logits + potential[strip, None]).logsumexp(0))
        row_sums = merge_log_sums(sums, sweep.ranks)
    return sweep.ranks.add(potential)
