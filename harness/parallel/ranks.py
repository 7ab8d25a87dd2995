"""The ranks that share one global batch, and their collectives.

Convention: every rank gathers the whole batch and computes the *global* loss; only the dense N x M part is divided
among the ranks. So the value, the loss parameters' gradients and every statistic are the same on all ranks. The
gradient that flows into a rank's own features is multiplied by the world size, because DistributedDataParallel divides
by it when it *averages* the towers' gradients: after averaging they equal those of one process with the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """A process group and this process's rank in it; the default is a single process."""

    group: dist.ProcessGroup | None = None
    rank: int = 0
    size: int = 1

    @classmethod
    def world(cls) -> Ranks:
        """All processes if torch.distributed is initialised, else a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.group.WORLD, dist.get_rank(), dist.get_world_size())

    def share(self, total: int) -> tuple[int, int]:
        """This rank's part [start, stop) of `total` items."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over ranks, in place; not differentiable."""
        if self.size > 1 and tensor.numel():
            dist.all_reduce(tensor, dist.ReduceOp.SUM, group=self.group)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over ranks, in place; not differentiable."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """The equal-sized tensors of all ranks; not differentiable."""
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return parts

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Equal-sized parts [n, ...] of all ranks as [size * n, ...], rank 0 first; differentiable."""
        return _Gather.apply(tensor, self) if self.size > 1 else tensor

    def all_gather_ragged(self, tensor: Tensor) -> Tensor:
        """Parts [p, ...] of different lengths, concatenated in the order of ranks; not differentiable."""
        if self.size == 1:
            return tensor
        lengths = self.all_gather(torch.tensor([len(tensor)], device=tensor.device)).tolist()
        padded = tensor.new_zeros((max(1, *lengths), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = self.all_gather(padded).view(self.size, *padded.shape)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def agreed(self, parameter: Tensor) -> Tensor:
        """Return `parameter`, with its gradient averaged over ranks in the backward pass.

        The gradients are equal up to the order of additions. Averaging makes them bitwise equal, so that replicas of
        the temperature and the bias never drift apart, with or without DistributedDataParallel.
        """
        return _Agreed.apply(parameter, self) if self.size > 1 else parameter


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.length = ranks, len(tensor)
        return torch.cat(ranks.parts(tensor))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        start = ctx.ranks.rank * ctx.length
        return grads[0][start : start + ctx.length] * ctx.ranks.size, None


class _Agreed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return parameter.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.all_reduce_sum(grads[0].clone()) / ctx.ranks.size, None
