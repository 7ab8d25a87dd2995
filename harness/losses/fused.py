"""The elementwise part of the sigmoid losses in one pass over a strip of scores, as a Triton kernel for GPUs.

PyTorch would read and write the strip about ten times, which takes longer than the matrix products around it.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["sigmoid_strip"]

_BLOCK = 4096


def sigmoid_strip(cosines: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sigmoid(z) in `dtype`, and the sums of softplus(z) and of sigmoid(z) [2] float64, z = scale * cosines + bias.

    Args:
        cosines: [c, N] float32, contiguous.
        scale: scalar float32 on the same device.
        bias: scalar float32 on the same device.
        dtype: what the next matrix products run in.
    """
    weights = torch.empty_like(cosines, dtype=dtype)
    blocks = triton.cdiv(cosines.numel(), _BLOCK)
    sums = torch.empty(2, blocks, dtype=torch.float32, device=cosines.device)
    _kernel[(blocks,)](cosines, weights, sums, scale, bias, cosines.numel(), blocks, _BLOCK, num_warps=8)
    return weights, sums.sum(1, dtype=torch.float64)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(cosines, weights, sums, scale, bias, size, blocks, block: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    offsets = program.to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < size
    z = tl.load(cosines + offsets, mask=inside, other=0.0) * tl.load(scale) + tl.load(bias)
    e = tl.exp(-tl.abs(z))
    # log(1 + e) rounds e away once it is small, and small is what most pairs are
    log1p = tl.where(e < 0.01, e * (1 - e * (0.5 - e * (1.0 / 3.0))), tl.log(1.0 + e))
    softplus = tl.maximum(z, 0.0) + log1p
    sigmoid = tl.where(z >= 0, 1.0, e) / (1.0 + e)
    tl.store(weights + offsets, sigmoid.to(weights.dtype.element_ty), mask=inside)
    tl.store(sums + program, tl.sum(tl.where(inside, softplus, 0.0)))
    tl.store(sums + blocks + program, tl.sum(tl.where(inside, sigmoid, 0.0)))
