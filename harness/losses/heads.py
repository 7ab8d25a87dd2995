"""Projection heads: what lies between the towers' features and a loss, and is not used after training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["mlp", "projected"]


def mlp(width: int, sizes: Sequence[int], make: torch.Generator, *, norm_last: bool = False) -> nn.Sequential:
    """Linear layers, with batch norm and ReLU between them. [n, width] -> [n, sizes[-1]].

    The norms use the statistics of the batch alone: heads are not used after training.

    Args:
        norm_last: a batch norm also follows the last layer.
    """
    layers: list[nn.Module] = []
    for size in sizes[:-1]:
        layers += [_linear(width, size, make), nn.BatchNorm1d(size, track_running_stats=False), nn.ReLU()]
        width = size
    layers.append(_linear(width, sizes[-1], make))
    if norm_last:
        layers.append(nn.BatchNorm1d(sizes[-1], track_running_stats=False))
    return nn.Sequential(*layers)


def _linear(width: int, out: int, make: torch.Generator) -> nn.Linear:
    """As nn.Linear initialises itself, but not from the global generator, which threads share."""
    layer = nn.Linear(width, out, device="meta").to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=make)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=make)
    return layer


def projected(head: nn.Module, features: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit rows behind the head, in `dtype`; the head computes in its own precision."""
    own = next((parameter.dtype for parameter in head.parameters()), dtype)
    return F.normalize(head(features.to(own)).to(dtype), dim=1)
