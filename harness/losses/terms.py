"""Objectives that are sums of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import tee

import torch
from torch import Tensor, nn

from harness.config.loss import SumLoss
from harness.losses.base import Logs, Objective, PairBatch, objectives
from harness.losses.chunks import ChunkPass

__all__ = ["SumObjective"]


@objectives.register(SumLoss)
class SumObjective(Objective):
    """The weighted sum of the terms' objectives. The batch is gathered once, and the terms share its ingredients.

    Logs of the first term keep their names, so that they compare with those of the loss alone; those of the others
    begin with the term's name. `loss/<term>` is a term's weighted value.
    """

    def __init__(self, spec: SumLoss, sweep: ChunkPass) -> None:
        nn.Module.__init__(self)
        self.sweep = sweep
        self.state_needs(spec)
        self.weights = [term.weight_at for term in spec.active]
        built: list[Objective] = [objectives(part, sweep) for part in spec.parts]
        self.pairs_modalities = [part.pairs_modalities for part in spec.parts]
        trained = [one for one in built if one.log_scale.requires_grad]
        if spec.share_logit_scale:
            for one in trained:
                one.log_scale = trained[0].log_scale
                one.max_log_scale = min(other.max_log_scale for other in trained)
        self.terms = nn.ModuleList(built)
        self.log_scale = self._built[0].log_scale
        self.names = _numbered([part.label for part in spec.parts])

    @property
    def _built(self) -> list[Objective]:
        return [one for one in self.terms if isinstance(one, Objective)]

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        raise NotImplementedError("each term has its own scale: see of_whole")

    def of_whole(self, whole: PairBatch) -> tuple[Tensor, Logs]:
        """The weighted sum of the terms of the batch of all ranks."""
        values: list[Tensor] = []
        logs: Logs = {}
        for name, weight_at, objective in zip(self.names, self.weights, self._built, strict=True):
            weight = weight_at(whole.epoch)
            value, told = objective.of_whole(whole)
            values.append(weight * value)
            logs |= {key if len(values) == 1 else f"{name}/{key}": one for key, one in told.items()}
            logs[f"loss/{name}"] = values[-1].detach()
        return torch.stack(values).sum(), logs

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """Those of every term, one after the other."""
        for one in self._built:
            one.build_heads(width, make)

    def compute_by(self, sweep: ChunkPass) -> None:
        """As in Objective, for every term."""
        self.sweep = sweep
        for one in self._built:
            one.compute_by(sweep)

    @torch.no_grad()
    def clamp_(self) -> None:
        """As in Objective, for every term."""
        for one in self._built:
            one.clamp_()

    @torch.no_grad()
    def start_at(self, scale: float, bias: float | None) -> None:
        """As in Objective, for the terms that compare images with captions."""
        for one, pairs in zip(self._built, self.pairs_modalities, strict=True):
            if pairs:
                one.start_at(scale, bias)

    def calibrate(self, batches: Iterable[PairBatch]) -> None:
        """As in Objective, for every term; each batch is made once."""
        for one, seen in zip(self._built, tee(batches, len(self.terms)), strict=True):
            one.calibrate(seen)


def _numbered(names: list[str]) -> list[str]:
    """The names, with a number behind the second and later ones of a kind."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
