"""From a mining spec to the rule that finds a batch's positives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from harness.base.errors import SpecError
from harness.base.registry import Registry
from harness.config.mining import MiningSpec, NoMining, PlaceboMining, ThresholdMining
from harness.mining.placebo import redrawn
from harness.mining.positives import Mined, mine
from harness.mining.thresholds import resolve_thresholds

__all__ = ["Calibration", "MiningRule", "build_rule", "rules"]


class Calibration(NamedTuple):
    """The teacher's features of a fixed sample of a run's images, on which a rule may set what it needs."""

    image: Tensor
    """Unit rows [S, e]."""
    text: Tensor
    """Unit rows [T, e] of the captions that a batch of these images would hold."""
    owner: Tensor
    """[T] int64: the image of each caption."""


class MiningRule(Protocol):
    """Which pairs of a batch are positives, by the teacher's features."""

    def mine(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> Mined:
        """The positives of `images` in the whole batch; arguments as in `harness.mining.mine`."""

    def logs(self) -> dict[str, float]:
        """What a run's steps log about the rule itself."""


rules: Registry[[Callable[[], Calibration]], MiningRule | None] = Registry("mining")
"""The rule of each mining spec, made with a function that reads its calibration sample; None mines nothing."""


def build_rule(spec: MiningSpec, calibration: Callable[[], Calibration]) -> MiningRule | None:
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
class ThresholdRule:
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
class PlaceboRule:
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
