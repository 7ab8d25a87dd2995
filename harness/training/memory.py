"""The largest micro-batch that fits into a GPU's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from harness.base.errors import TrainingError
from harness.parallel.ranks import Ranks
from harness.training.split import Split, smaller


def largest_that_fits(split: Split, tries: Callable[[Split], None], ranks: Ranks, device: torch.device) -> Split:
    """`split`, or the next smaller one whose forward and backward pass fits on every process.

    Args:
        split: with the largest micro-batch that may be.
        tries: runs a micro-batch's forward and backward pass, without talking to other processes.
        ranks: the processes; all settle on the smallest of what fits each.
        device: where.

    Raises:
        TrainingError: not even the smallest does.
    """
    while True:
        fits = torch.tensor([0 if _fits(split, tries) else 1], device=device)
        if not int(ranks.all_reduce_max(fits)):
            return split
        less = smaller(split)
        if less is None:
            what = f"not even a micro-batch of {split.micro} images fits into memory"
            fix = 'set resources.gradient_checkpointing, train.precision = "bfloat16", or use more processes'
            raise TrainingError(what, where="resources.micro_batch_size", fix=fix)
        split = less


def reserve(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Memory as large as gradients and both moments of `parameters` will be, to be held while something is tried."""
    return [torch.empty_like(parameter) for parameter in parameters for _ in range(3)]


def _fits(split: Split, tries: Callable[[Split], None]) -> bool:
    try:
        tries(split)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
