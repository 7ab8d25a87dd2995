"""Losses against features of the past: of momentum towers, and of queues."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.base.errors import SpecError
from harness.config.losses.base import Clamp, LossSpec, MomentumNeed, Share, Weight


class QueueSpec(LossSpec):
    """A loss with queues of past features, in the order of the samples of the global batches."""

    queue_size: int = Field(65536, ge=1)
    """Features that a queue holds; at least the captions of a batch. It starts empty: only features that were put into
    it take part."""

    def check_batch(self, images: int, captions: int) -> None:
        """Require a queue that holds a whole batch."""
        if self.queue_size < images * captions:
            batch = f"{images} images with {captions} captions each" if captions > 1 else f"{images} images"
            what = f"a queue of {self.queue_size} features is smaller than a batch of {batch}"
            fix = f"take at least {images * captions}, or a smaller train.global_batch_size"
            raise SpecError(what, where="loss.queue_size", fix=fix)


class MomentumSpec(QueueSpec):
    """A loss that reads the momentum towers' features of the batch, and queues of them."""

    momentum: Share = 0.995
    """Share of the old weights in each move of the momentum towers, one after every optimiser step."""

    @property
    def momentum_need(self) -> MomentumNeed | None:
        """Towers that move by `momentum`."""
        return MomentumNeed(self.momentum, images=True, views=0)


class MoCo(MomentumSpec):
    """Images against momentum captions and captions against momentum images, negatives from queues (BriVL, 2021)."""

    kind: Literal["moco"] = "moco"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    learn_logit_scale: bool = False
    """Train the factor; off, as published, keeps it at its start value."""
    queue_size: int = Field(9600, ge=1)
    """Features that a queue holds; at least the captions of a batch. It starts empty: only features that were put into
    it take part."""
    momentum: Share = 0.99
    """Share of the old weights in each move of the momentum towers, one after every optimiser step."""


class DistillationSpec(MomentumSpec):
    """Momentum distillation: targets of which a share is the momentum towers' own softmax."""

    max_logit_scale: Clamp = 1000.0
    """The factor is clamped to this after each step; `"off"` does not clamp it."""
    distillation: Share = 0.4
    """Share alpha of the momentum towers' softmax in the targets; the rest is the ground truth."""
    ramp_epochs: Weight = 1.0
    """Epochs over which alpha rises from 0."""

    def distillation_at(self, epoch: float) -> float:
        """Alpha after so many epochs of training."""
        return self.distillation * (min(1.0, epoch / self.ramp_epochs) if self.ramp_epochs else 1.0)

    def irrelevant(self) -> frozenset[str]:
        """The ramp of no distillation."""
        return frozenset() if self.distillation else frozenset({"ramp_epochs"})


class ALBEF(DistillationSpec):
    """ALBEF's image-text contrast with momentum distillation and queues (Li et al., NeurIPS 2021)."""

    kind: Literal["albef"] = "albef"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False


class TCL(DistillationSpec):
    """ALBEF's contrast, with one in each modality: an image and a momentum view (Yang et al., CVPR 2022)."""

    kind: Literal["tcl"] = "tcl"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    local: bool = False
    """Add the published code's two local terms: each image against the momentum view's patches, each caption against
    its momentum tokens. The loss is then the mean of six terms, as there, instead of four. Needs towers with tokens."""

    @property
    def momentum_need(self) -> MomentumNeed | None:
        """Towers that see a further view of the images, in place of the images."""
        return MomentumNeed(self.momentum, images=False, views=1, tokens=self.local)


class NearestNeighbour(QueueSpec):
    """Images against the past caption that is nearest to their own (DeCLIP's NNS, Li et al., ICLR 2022)."""

    kind: Literal["nearest_neighbour"] = "nearest_neighbour"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    pairs_modalities: ClassVar[bool] = False

    directions: Literal["image_to_text", "both"] = "image_to_text"
    """`image_to_text`, as in DeCLIP's code: each image against the neighbours. `both`: also the mean with each
    neighbour against the images, as in CLIP's loss."""
