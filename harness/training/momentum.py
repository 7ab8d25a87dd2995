"""Momentum towers: a copy of the student's towers that follows them, and its features of each batch."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.config.losses.base import MomentumNeed
from harness.losses import PairBatch
from harness.models import Towers
from harness.models.towers import moves
from harness.models.transfer import sent
from harness.training.batches import Batch
from harness.training.encoder import TEXT, seed_of
from harness.training.precision import Precision
from harness.training.split import Split
from harness.training.step_timer import StepTimer

__all__ = ["MomentumEncoder", "MomentumTowers"]


class MomentumTowers:
    """w_m <- m w_m + (1 - m) w after every optimiser step, over the parameters; w_m starts at w.

    The published codes move them before each forward pass, the first time without effect: the features are the same.
    Batch norms use the statistics of the batch alone, as MoCo's; those of a locked tower keep their running ones.
    """

    def __init__(self, towers: Towers, need: MomentumNeed) -> None:
        """Raises ModelError where features of tokens are needed, and the towers give none."""
        if need.tokens:
            towers.require_tokens()
        self.need = need
        self.towers = deepcopy(towers, {id(towers.tokens): towers.tokens}).requires_grad_(False).train()
        for norm, own in zip(self.towers.norms, towers.norms, strict=True):
            if moves(own):
                norm.track_running_stats = False
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        ours, theirs = ([one.detach() for one in every.parameters()] for every in (self.towers, towers))
        self._pairs = (ours, theirs)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the student; call it after each optimiser step."""
        torch._foreach_lerp_(*self._pairs, 1 - self.need.momentum)

    def state_dict(self) -> dict[str, Any]:
        """Their weights."""
        return self.towers.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with weights.

        Raises:
            RuntimeError: they are those of another model.
        """
        self.towers.model.load_state_dict(state)


class MomentumEncoder:
    """The momentum towers' features of this process's part of each global batch, split and seeded as the student's."""

    def __init__(
        self, momentum: MomentumTowers, precision: Precision, split: Split, *, seed: int, clock: StepTimer
    ) -> None:
        self._towers, self._need = momentum.towers, momentum.need
        self._precision, self._split, self._seed, self._clock = precision, split, seed, clock

    @torch.no_grad()
    def __call__(self, step: int, batch: Batch, pairs: PairBatch) -> PairBatch:
        """Add the momentum towers' features that the loss reads to the student's `pairs`."""
        with self._clock("momentum towers"), self._precision.autocast():
            units = [unit for micro in batch.parts(self._split.micro) for unit in micro.parts(self._split.unit)]
            found = [self._of_unit(step, unit) for unit in units]
        features: dict[str, Any] = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        return replace(pairs, **features)

    def _of_unit(self, step: int, unit: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self._need.images:
            found["momentum_image"] = self._image(step, unit, unit.images, 0)
        if unit.momentum_views is not None:
            views = enumerate(unit.momentum_views.unbind(1), start=1)
            every = [self._image(step, unit, view, number) for number, view in views]
            if self._need.tokens:
                found["momentum_patches"] = every[0][:, 1:]
                every = [one[:, 0] for one in every]
            found["momentum_views"] = torch.stack(every, 1)
        torch.manual_seed(seed_of(self._seed, step, unit.first) + TEXT)
        if not self._need.tokens:
            found["momentum_text"] = self._towers.encode_text(unit.tokens)
            return found
        text = self._towers.encode_text_tokens(unit.tokens)
        found["momentum_text"], found["momentum_tokens"] = text[:, 0], text[:, 1:]
        found["momentum_mask"] = sent(_inner(unit.tokens), text.device)
        return found

    def _image(self, step: int, unit: Batch, pixels: Tensor, view: int) -> Tensor:
        """[n, d], or, with tokens and of a view, those of the patches behind it, [n, 1 + p, d]."""
        torch.manual_seed(seed_of(self._seed, step, unit.first, view))
        encode = self._towers.encode_image_tokens if self._need.tokens and view else self._towers.encode_image
        return encode(self._towers.normalise(sent(pixels, self._towers.device)))


def _inner(tokens: Tensor) -> Tensor:
    """Mask [M, L] of the tokens between the first and the last, which has the largest id, of each text."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return (place > 0) & (place < tokens.argmax(dim=1, keepdim=True))
