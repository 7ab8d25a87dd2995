"""Queues of past features, and what losses compute against rows that have no gradient, a strip of rows at a time.

Each rank sweeps its share of the rows; the results, equal on all ranks, are those of all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.losses.chunks import ChunkPass, merge_log_sums, precise, product, scores

__all__ = ["FeatureQueue", "Keys", "log_sums", "nearest", "soft_targets"]


@dataclass(frozen=True)
class Keys:
    """Rows to compare with, without a gradient."""

    rows: Tensor
    """[K, d] unit rows."""
    valid: Tensor | None = None
    """[K] bool: the rows that take part; None: all."""

    def strips(self, query: Tensor, sweep: ChunkPass) -> Iterator[tuple[slice, Tensor]]:
        """This rank's share of the rows [c, d], in the dtype of `query` [A, d], and where they are."""
        for strip in sweep.strips(query, self.rows):
            yield strip, self.rows[strip].to(query.dtype)

    def scores(self, query: Tensor, rows: Tensor, strip: slice, scale: Tensor | float) -> Tensor:
        """z = scale s [c, A] of a strip, -inf for rows that take no part."""
        z = scores(query, rows, scale)
        return z if self.valid is None else z.masked_fill_(~self.valid[strip, None], -torch.inf)


class FeatureQueue(nn.Module):
    """A ring of the last `size` features, in the order in which they came. It starts empty.

    A batch is held during its step and enters the ring by `advance`, after the optimiser step, so that the loss and its
    gradient see one content, and a step that fails leaves none. Every rank has the whole queue, of global batches.
    """

    rows: Tensor
    taken: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))  # on the device: no step waits to read it
        self._held: Tensor | None = None

    @property
    def keys(self) -> Keys:
        """The rows; those that were never filled take no part."""
        return Keys(self.rows, torch.arange(len(self.rows), device=self.rows.device) < self.taken)

    def hold(self, features: Tensor) -> None:
        """Remember the features [n, d] of the step that is being taken.

        Raises:
            ValueError: they are more than the queue holds.
        """
        if len(features) > len(self.rows):
            raise ValueError(f"a queue of {len(self.rows)} features cannot hold a batch of {len(features)}")
        self._held = features.detach()

    @torch.no_grad()
    def advance(self) -> None:
        """Put the held features behind the last ones, over the oldest where the ring is full."""
        if self._held is None:
            return
        number = torch.arange(len(self._held), device=self.rows.device)
        self.rows.index_copy_(0, (self.taken + number) % len(self.rows), self._held.to(self.rows.dtype))
        self.taken += len(self._held)
        self._held = None


def log_sums(query: Tensor, scale: Tensor, keys: Iterable[Keys], sweep: ChunkPass) -> Tensor:
    """log sum_j exp(scale <query_i, key_j>) over all of `keys`: [A], differentiable in `query` [A, d] and `scale`."""
    total: Tensor | None = None
    for one in keys:
        part: Tensor = _LogSums.apply(query, scale, one, sweep)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total


@torch.no_grad()
def soft_targets(query: Tensor, scale: Tensor, keys: Sequence[Keys], sweep: ChunkPass) -> Tensor:
    """sum_j softmax_j(scale <query_i, key_j>) key_j over all of `keys`: [A, d]. In one pass, by running maxima."""
    accumulate = precise(query.dtype)
    log_sum = torch.full((len(query),), -torch.inf, dtype=accumulate, device=query.device)
    mean = torch.zeros(query.shape, dtype=accumulate, device=query.device)
    for one in keys:
        for strip, rows in one.strips(query, sweep):
            z = one.scores(query, rows, strip, scale)
            after = torch.logaddexp(log_sum, z.logsumexp(0))
            base = _finite(after)
            weights = z.sub_(base).exp_().t().to(query.dtype)
            mean = mean.mul_((log_sum - base).exp_()[:, None]).add_(product(weights, rows))
            log_sum = after
    whole = merge_log_sums(log_sum, sweep.ranks)
    return sweep.ranks.all_reduce_sum(mean.mul_((log_sum - _finite(whole)).exp_()[:, None]))


@torch.no_grad()
def nearest(query: Tensor, keys: Keys, sweep: ChunkPass) -> Tensor:
    """The row of `keys` with the largest cosine to each of `query` [A, d]: [A, d]; any row if none takes part."""
    best = torch.full((len(query),), -torch.inf, dtype=precise(query.dtype), device=query.device)
    place = torch.zeros(len(query), dtype=torch.long, device=query.device)
    for strip, rows in keys.strips(query, sweep):
        cosine, row = keys.scores(query, rows, strip, 1.0).max(0)
        closer = cosine > best
        best, place = torch.where(closer, cosine, best), torch.where(closer, row + strip.start, place)
    top = sweep.ranks.all_reduce_max(best.clone())
    return keys.rows[sweep.ranks.all_reduce_max(torch.where(best == top, place, 0))].to(query.dtype)


def _finite(log_sum: Tensor) -> Tensor:
    """0 in place of the logarithm of an empty sum, whose difference to itself is not a number."""
    return torch.where(log_sum == -torch.inf, 0, log_sum)


class _LogSums(torch.autograd.Function):
    # As _LogNormalisers, in one direction: keys need neither sums of their own nor a gradient, half of the work.
    @staticmethod
    def forward(ctx: Any, query: Tensor, scale: Tensor, keys: Keys, sweep: ChunkPass) -> Tensor:
        total = torch.full((len(query),), -torch.inf, dtype=precise(query.dtype), device=query.device)
        for strip, rows in keys.strips(query, sweep):
            total = torch.logaddexp(total, keys.scores(query, rows, strip, scale).logsumexp(0))
        total = merge_log_sums(total, sweep.ranks)
        ctx.save_for_backward(query, scale, total)
        ctx.keys, ctx.sweep = keys, sweep
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, scale, total = ctx.saved_tensors
        base = _finite(total)
        gradient = torch.zeros_like(query, dtype=total.dtype)
        for strip, rows in ctx.keys.strips(query, ctx.sweep):
            weights = ctx.keys.scores(query, rows, strip, scale).sub_(base).exp_().mul_(grads[0])
            gradient += product(weights.t().to(query.dtype), rows)
        ctx.sweep.ranks.all_reduce_sum(gradient)
        in_scale = (query.to(gradient.dtype) * gradient).sum().to(scale.dtype)
        return gradient.mul_(scale).to(query.dtype), in_scale, None, None
