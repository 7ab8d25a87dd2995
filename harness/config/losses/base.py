"""What all losses declare."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from harness.base.errors import SpecError
from harness.config.base import Spec

__all__ = ["CLIP_SCALE", "Clamp", "LossSpec", "MomentumNeed", "Positive", "Share", "SquareLossSpec", "Weight"]

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _none_where_off(value: Any) -> Any:
    return None if value == "off" else value


Clamp = Annotated[
    Positive | None,
    BeforeValidator(_none_where_off),
    WithJsonSchema({"anyOf": [{"exclusiveMinimum": 0, "type": "number"}, {"const": "off", "type": "string"}]}),
]
"""A positive bound, or `"off"`, as files write None: TOML has no null."""
CLIP_SCALE = 1 / 0.07
"""CLIP's start value of the factor on cosines."""


class MomentumNeed(NamedTuple):
    """What a loss reads of momentum towers, beside their features of the captions."""

    momentum: float
    """Share of the old weights in each move of these towers."""
    images: bool
    """Their features of the images."""
    views: int
    """Of how many further augmentations of each image their features."""
    tokens: bool = False
    """Their features of the patches of the first of these augmentations, and of the captions' tokens."""


class LossSpec(Spec):
    """Base of all losses: a temperature, as the factor t = 1/tau on cosines.

    Each loss declares what it needs: the class variables below have no default, and a class without them is an error.
    """

    needs_teacher: ClassVar[bool]
    """It reads the frozen teacher's features, whether or not positives are mined."""
    needs_tokens: ClassVar[bool]
    """It reads token features, which pooled towers do not have."""
    uses_mining: ClassVar[bool]
    """Its definition uses mined positives; otherwise it trains on the ground truth."""
    image_views: ClassVar[int] = 0
    """How many further augmentations of each image it reads."""
    text_views: ClassVar[int] = 0
    """How many further edits of each caption it reads."""
    hard_negatives: ClassVar[bool] = False
    """It reads captions that are edited so that they belong to no image."""
    needs_decoder: ClassVar[bool] = False
    """It reads how well the model's captioning decoder predicts the captions."""
    masks_text: ClassVar[bool] = False
    """It reads how well the text tower predicts masked tokens of the captions."""
    needs_samples: ClassVar[bool] = False
    """It reads which samples of the data are in the batch."""
    momentum_towers: ClassVar[float] = 0.0
    """It reads features of momentum towers, which keep this share of their weights in each move; 0: it reads none."""
    pairs_modalities: ClassVar[bool] = True
    """It compares images with captions, and so trains both towers. Otherwise it is only a term of a sum."""

    logit_scale: Positive = CLIP_SCALE
    """Start value of the factor t = 1/tau on cosines."""
    learn_logit_scale: bool = True
    """Train the factor; off keeps it at its start value."""
    max_logit_scale: Clamp = 100.0
    """The factor is clamped to this after each step; `"off"` does not clamp it."""

    @property
    def label(self) -> str:
        """Name in messages and reports."""
        return self.kind_name()

    @property
    def takes_mining(self) -> bool:
        """Whether mined positives can change its value, given its fields."""
        return self.uses_mining

    @property
    def views_read(self) -> int:
        """How many further augmentations of each image it reads, given its fields."""
        return self.image_views

    @property
    def text_views_read(self) -> int:
        """How many further edits of each caption it reads, given its fields."""
        return self.text_views

    @property
    def scale_fields(self) -> tuple[str, ...]:
        """Fields with the start value of a factor, none of which is over `max_logit_scale`."""
        return ("logit_scale",)

    @property
    def compares_tokens(self) -> bool:
        """Whether it needs towers that give features of tokens, given its fields."""
        return self.needs_tokens or (self.momentum_need is not None and self.momentum_need.tokens)

    @property
    def masked_share(self) -> float | None:
        """Share of the captions' tokens to mask, given its fields; None if it reads no masked captions."""
        return 0.15 if self.masks_text else None

    @property
    def momentum_need(self) -> MomentumNeed | None:
        """The momentum towers that it reads, given its fields; None: it reads none."""
        return MomentumNeed(self.momentum_towers, images=True, views=0) if self.momentum_towers else None

    @property
    def parts(self) -> tuple[LossSpec, ...]:
        """The losses that it is the sum of: itself."""
        return (self,)

    def check_captions(self, per_image: int) -> None:
        """Check that the loss can be trained with this number of captions per image.

        Raises:
            SpecError: it cannot.
        """

    def check_training(self, samples: int, seen: int) -> None:
        """Check that the loss can be trained on data of so many samples, of which training sees so many in all.

        Raises:
            SpecError: it cannot.
        """

    def check_batch(self, images: int, captions: int) -> None:
        """Check that the loss can be trained with batches of so many images, each with so many captions.

        Raises:
            SpecError: it cannot.
        """

    def brief(self, batch: int) -> dict[str, Any]:  # noqa: ARG002 - of losses that have something to change
        """The changes with which a few steps of so many images use all that it has."""
        return {}

    @model_validator(mode="after")
    def _starts_under_the_clamp(self) -> LossSpec:
        most = self.max_logit_scale
        for name in self.scale_fields if most is not None else ():
            if (start := getattr(self, name)) > most:
                raise ValueError(f"{name} {start:g} is over max_logit_scale {most:g}")
        return self


class SquareLossSpec(LossSpec):
    """A loss that is defined for one caption per image."""

    slotwise: bool = False
    """With k captions per image: the mean of k losses of one caption each. Off, more than one is an error."""

    def check_captions(self, per_image: int) -> None:
        """Require one caption per image, unless the loss is slotwise."""
        if per_image != 1 and not self.slotwise:
            what = f"{self.label} takes one caption per image, not {per_image}"
            fix = "set slotwise = true for the mean over caption slots, or sample one"
            raise SpecError(what, where="loss", fix=fix)
