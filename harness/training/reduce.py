"""Gradients averaged over processes.

DistributedDataParallel lays its buckets out anew after the first backward pass of a process, in the order in which
gradients became ready; with more than two processes another layout adds in another order, so that a resumed run would
not be bitwise equal. Here the layout is fixed by the order of the parameters alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.parallel.ranks import Ranks

BUCKET_BYTES = 32 * 2**20


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Replace the gradient of every parameter by its mean over ranks; all must have gradients for the same ones."""
    if ranks.size == 1:
        return
    running = []
    for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        running.append((bucket, flat, dist.all_reduce(flat, group=ranks.group, async_op=True)))
    for bucket, flat, work in running:
        work.wait()
        flat /= ranks.size
        for gradient, part in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for _, alike in groupby(gradients, key=lambda gradient: gradient.dtype):
        bucket: list[Tensor] = []
        size = 0
        for gradient in alike:
            bucket.append(gradient)
            size += gradient.numel() * gradient.element_size()
            if size >= BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
