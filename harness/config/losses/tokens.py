"""Losses on the features of patches and tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.config.losses.base import LossSpec, Positive, Share, Weight


class FILIP(LossSpec):
    """CLIP on token-wise late interaction: mean of each token's best match (Yao et al., ICLR 2022)."""

    kind: Literal["filip"] = "filip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = True
    uses_mining: ClassVar[bool] = False

    pooled_weight: Weight = 1.0
    """Weight of an added CLIP loss on the pooled features. The paper has none (0) and measures by tokens too, as
    `evaluation.similarity = "token_wise"` does. By default models are measured by their pooled features, which the
    token-wise loss alone hardly trains."""


class DreamLIP(LossSpec):
    """Multi-positive CLIP with captions grouped to patches (Zheng et al., ECCV 2024)."""

    kind: Literal["dreamlip"] = "dreamlip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = True
    uses_mining: ClassVar[bool] = False

    local_weight: Weight = 1.0
    """Weight of the loss between a caption and the patches grouped to it."""
    threshold: Share | Literal["uniform"] = 0.0
    """A caption's group leaves out patches with a min-max normalised similarity below this. `"uniform"`: below their
    uniform weight, 1/patches."""
    local_logit_scale: Positive | Literal["shared"] = "shared"
    """Start value of a second factor, on the cosines of the local loss; it is trained and clamped as `logit_scale` is.
    `"shared"`: both losses have one factor."""

    circle_weight: Weight = 0.0
    """Weight of the authors' multi-positive circle loss between an image and all its captions; their code's option has
    0.1. The default leaves it out, as their code does."""
    circle_margin: float = Field(0.25, ge=0, lt=1)
    """The circle loss's margin m: cosines of pairs are to exceed 1 - m, all others to stay under m."""
    circle_gamma: Positive = 32.0
    """The circle loss's own factor on cosines; it is not trained."""

    @property
    def scale_fields(self) -> tuple[str, ...]:
        """The factor of the local loss too, if it has one of its own."""
        return ("logit_scale",) if self.local_logit_scale == "shared" else ("logit_scale", "local_logit_scale")

    def irrelevant(self) -> frozenset[str]:
        """The fields of the losses without weight."""
        local = frozenset() if self.local_weight else frozenset({"local_logit_scale"})
        return local if self.circle_weight else local | {"circle_margin", "circle_gamma"}
