"""From a mining spec to the rule that finds a batch's positives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harness.base.errors import SpecError
from harness.base.registry import Registry
from harness.config.mining import MiningSpec, NoMining, PlaceboMining, PythonMining, ThresholdMining, TruthMining
from harness.mining.placebo import DRAWN, redrawn
from harness.mining.positives import GROUND_TRUTH, Mined, mine
from harness.mining.thresholds import resolve_thresholds
from harness.mining.truth import TruthRule

__all__ = ["Calibration", "MiningRule", "PairRule", "build_rule", "rules"]


class Calibration(NamedTuple):
    """The teacher's features of a fixed sample of a run's images, on which a rule may set what it needs."""

    image: Tensor
    """Unit rows [S, e]."""
    text: Tensor
    """Unit rows [T, e] of the captions that a batch of these images would hold."""
    owner: Tensor
    """[T] int64: the image of each caption."""


class MiningRule(ABC):
    """Which pairs of a batch are positives, by the teacher's features."""

    @abstractmethod
    def mine(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> Mined:
        """The positives of `images` in the whole batch; arguments as in `harness.mining.mine`."""

    def logs(self) -> dict[str, float]:
        """What a run's steps log about the rule itself."""
        return {}


class PairRule(MiningRule):
    """A rule that adds pairs to the ground truth: an image's own captions are always positives."""

    @abstractmethod
    def pairs(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> tuple[Tensor, Tensor]:
        """The pairs to add for `images`, a process's part of the batch, as rows [P] and captions [P], both int64.

        Args:
            image: the teacher's image features of the whole batch, unit rows [N, e].
            text: the teacher's features of all captions of the batch, unit rows [M, e].
            owner: the image of every caption [M].
            images: the images to mine for. Rows are counted in the whole batch.
        """

    def mine(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> Mined:
        """The pairs and the ground truth, each once."""
        rows, cols = self.pairs(image, text, owner, images)
        own = torch.nonzero((owner >= images.start) & (owner < images.stop))[:, 0]
        keys = torch.unique(torch.cat([owner[own] * len(text) + own, rows * len(text) + cols]))
        found, captions = keys // len(text), keys % len(text)
        clause = torch.where(owner[captions] == found, GROUND_TRUTH, DRAWN).to(torch.uint8)
        return Mined(found, captions, clause, images, len(own))


rules: Registry[[Callable[[], Calibration]], MiningRule | TruthRule | None] = Registry("mining")
"""The rule of each mining spec, made with a function that reads its calibration sample; None mines nothing."""


def build_rule(spec: MiningSpec, calibration: Callable[[], Calibration]) -> MiningRule | TruthRule | None:
    """The rule that `spec` describes; None where an image's own captions are its only positives.

    Raises:
        SpecError: no rule is registered for mining of this kind, or it contradicts itself on this data.
        DataError: the calibration sample cannot be used.
    """
    return rules(spec, calibration)


@rules.register(NoMining)
def _no_rule(_spec: NoMining, _calibration: Callable[[], Calibration]) -> None:
    return None


@rules.register(ThresholdMining)
class ThresholdRule(MiningRule):
    """FFF Eq. 1 with the thresholds resolved."""

    def __init__(self, spec: ThresholdMining, calibration: Callable[[], Calibration]) -> None:
        self.thresholds = resolve_thresholds(spec, *calibration())

    def mine(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> Mined:
        """The pairs that a clause lets through."""
        return mine(self.thresholds, image, text, owner, images=images)

    def logs(self) -> dict[str, float]:
        """The thresholds in use."""
        return self.thresholds.logs()


@rules.register(PlaceboMining)
class PlaceboRule(MiningRule):
    """As many positives as a threshold rule finds, drawn at random."""

    def __init__(self, spec: PlaceboMining, calibration: Callable[[], Calibration]) -> None:
        if isinstance(spec.of, str):
            fix = "outside of an ablation's arms, give the mining itself: of = { kind = ... }"
            raise SpecError(f"{spec.of!r} names an arm, and there are none", where="mining.of", fix=fix)
        self._matched = ThresholdRule(spec.of, calibration)

    def mine(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> Mined:
        """Pairs drawn at random, as many for each image as the matched rule finds."""
        return redrawn(self._matched.mine(image, text, owner, images), image, owner)

    def logs(self) -> dict[str, float]:
        """The thresholds of the matched rule."""
        return self._matched.logs()


@rules.register(TruthMining)
def _truth_rule(spec: TruthMining, _calibration: Callable[[], Calibration]) -> TruthRule:
    return TruthRule(spec)


@rules.register(PythonMining)
def _own_rule(spec: PythonMining, calibration: Callable[[], Calibration]) -> MiningRule:
    rule: MiningRule = spec.built(calibration)
    return rule
