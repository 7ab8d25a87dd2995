"""The losses that a run can be trained with. Formulas and sources: docs/losses.md."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.errors import SpecError
from harness.spec.base import Spec

__all__ = ["InfoNCE", "Loss", "LossSpec", "MultiPositiveSigmoid", "Sigmoid", "check_loss"]

Scale = Annotated[float, Field(gt=0)]
_CLIP_SCALE = 1 / 0.07


class LossSpec(Spec):
    """What all losses have: a temperature, as the factor t = 1/tau on cosines."""

    needs_teacher: ClassVar[bool] = False
    """It reads the frozen teacher's features, mining or not."""
    needs_tokens: ClassVar[bool] = False
    """It reads token features, which pooled towers don't have."""
    uses_mining: ClassVar[bool] = True
    """Its definition has a place for mined positives; otherwise it trains on the ground truth whatever is mined."""

    logit_scale: Scale = _CLIP_SCALE
    """Start value of the factor t = 1/tau on cosines."""
    learn_logit_scale: bool = True
    """Train the factor; off keeps it at its start value."""
    max_logit_scale: Scale | None = 100.0
    """The factor is clamped to this after each step; left out, it is not clamped."""

    @model_validator(mode="after")
    def _starts_under_the_clamp(self) -> LossSpec:
        if self.max_logit_scale is not None and self.logit_scale > self.max_logit_scale:
            raise ValueError(f"logit_scale {self.logit_scale:g} is over max_logit_scale {self.max_logit_scale:g}")
        return self


class InfoNCE(LossSpec):
    """CLIP's symmetric cross-entropy against the ground truth (Radford et al., ICML 2021)."""

    kind: Literal["infonce"] = "infonce"
    uses_mining: ClassVar[bool] = False

    normaliser: Literal["pooled", "slotwise"] = "pooled"
    """With k captions per image: one softmax over all captions, or the mean of k losses of one caption each."""


class SigmoidFamily(LossSpec):
    """What the sigmoid losses share: a bias, z = t * cosine + b."""

    logit_scale: Scale = 10.0
    """Start value of the factor t = 1/tau on cosines."""
    max_logit_scale: Scale | None = None
    """The factor is clamped to this after each step; left out, it is not clamped."""
    logit_bias: float | Literal["calibrated"] = "calibrated"
    """Start value of b, or where the gradient with respect to b is zero on the first batches."""
    learn_logit_bias: bool = True
    """Train the bias; off keeps it at its start value."""


class Sigmoid(SigmoidFamily):
    """SigLIP: one caption per image, its own image the only positive (Zhai et al., ICCV 2023)."""

    kind: Literal["sigmoid"] = "sigmoid"
    uses_mining: ClassVar[bool] = False

    logit_bias: float | Literal["calibrated"] = -10.0
    """Start value of b, or where the gradient with respect to b is zero on the first batches."""
    slotwise: bool = False
    """With k captions per image: the mean of k losses of one caption each. Off, more than one is an error."""


class MultiPositiveSigmoid(SigmoidFamily):
    """FFF, Eq. 2: the sigmoid loss with any number of positives (Bulat et al., CVPR 2024)."""

    kind: Literal["multi_positive_sigmoid"] = "multi_positive_sigmoid"

    normaliser: Literal["captions", "images"] = "captions"
    """What the sum over pairs is divided by: M captions as in FFF and FLAIR, or N images as in SigLIP's code."""


Loss = Annotated[InfoNCE | Sigmoid | MultiPositiveSigmoid, Field(discriminator="kind")]


def check_loss(loss: Loss, captions_per_image: int, has_teacher: bool, mined: bool = False) -> None:
    """That `loss` can be trained on batches with that many captions per image.

    Args:
        loss: the loss.
        captions_per_image: captions of one image in a batch, raw and pseudo.
        has_teacher: the batches carry teacher features.
        mined: positives are mined.

    Raises:
        SpecError: it can't.
    """
    if loss.needs_teacher and not has_teacher:
        raise SpecError(f"{loss.kind} needs a teacher", where="loss", fix="name one under teacher")
    if mined and not loss.uses_mining:
        fix = "take the mining out, or take multi_positive_sigmoid, soft_target_infonce or supcon_out"
        raise SpecError(f"{loss.kind} has no place for mined positives", where="loss", fix=fix)
    if isinstance(loss, Sigmoid) and captions_per_image != 1 and not loss.slotwise:
        what = f"{loss.kind} takes one caption per image, not {captions_per_image}"
        raise SpecError(what, where="loss", fix="set slotwise = true for the mean over caption slots, or sample one")
