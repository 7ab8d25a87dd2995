"""Losses between augmentations of one image, through projection heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from harness.config.loss import SimCLR
from harness.losses.base import Logs, Objective, PairBatch, objectives
from harness.losses.chunks import ChunkPass, log_normalisers, pair_cosines

__all__ = ["SimCLRObjective", "projection"]


def projection(width: int, hidden: int, out: int, make: torch.Generator, *, layers: int = 2) -> nn.Sequential:
    """SLIP's head: hidden layers with batch norm and ReLU, then a linear one. [n, width] -> [n, out].

    The norms use the statistics of the batch alone: heads are not used after training.
    """
    parts: list[nn.Module] = []
    for size in (hidden,) * layers:
        parts += [_linear(width, size, make), nn.BatchNorm1d(size, track_running_stats=False), nn.ReLU()]
        width = size
    return nn.Sequential(*parts, _linear(width, out, make))


def _linear(width: int, out: int, make: torch.Generator) -> nn.Linear:
    """As nn.Linear initialises itself, but not from the global generator, which threads share."""
    layer = nn.Linear(width, out, device="meta").to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=make)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=make)
    return layer


@objectives.register(SimCLR)
class SimCLRObjective(Objective):
    """NT-Xent (Chen et al., ICML 2020), as in SLIP (Mu et al., ECCV 2022).

    Each of the 2N views has one positive, the other view of its image, and 2N - 2 negatives.
    """

    def __init__(self, spec: SimCLR, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.two_views = spec.between == "two_views"
        self.sizes = None if spec.head == "none" else (spec.hidden, spec.width)
        self.head: nn.Module = nn.Identity()

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """The projection."""
        if self.sizes is not None:
            self.head = projection(width, *self.sizes, make)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        if batch.image_views is None:
            raise ValueError("simclr needs further views of the images")
        second = batch.image_views[:, 1 if self.two_views else 0]
        first = batch.image_views[:, 0] if self.two_views else batch.image
        ours = [self._projected(one, scale.dtype) for one in (first, second)]
        both, count = torch.cat(ours), len(second)
        every = torch.arange(2 * count, device=both.device)
        other = (every + count) % (2 * count)
        z = scale * pair_cosines(both, both, every, other)
        normalisers, _ = log_normalisers(both, both, scale, self.sweep, (every, every))
        return {"contrast": (normalisers - z).mean()}, {}

    def _projected(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Unit rows behind the head; the head computes in its own precision."""
        own = next((parameter.dtype for parameter in self.head.parameters()), dtype)
        return F.normalize(self.head(features.to(own)).to(dtype), dim=1)
