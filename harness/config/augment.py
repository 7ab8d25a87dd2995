"""Augmentation of training images. Images of the teacher and of evaluations are not augmented."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.config.base import Spec


class AugmentSpec(Spec):
    """Base of every augmentation. Its class variable has no default."""

    is_random: ClassVar[bool]
    """An image looks different in each epoch, so its pixels cannot be kept."""


class NoAugment(AugmentSpec):
    """Resize and centre crop, as in evaluation."""

    kind: Literal["none"] = "none"
    is_random: ClassVar[bool] = False


class CropAugment(AugmentSpec):
    """Random resized crop and horizontal flip."""

    kind: Literal["crop"] = "crop"
    is_random: ClassVar[bool] = True
    min_scale: float = Field(0.5, gt=0, le=1)
    """Smallest share of the image's area that a crop covers."""
    max_scale: float = Field(1.0, gt=0, le=1)
    """Largest share of the image's area that a crop covers."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""

    @model_validator(mode="after")
    def _ordered(self) -> CropAugment:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale:g} is above max_scale {self.max_scale:g}")
        return self


class FFFAugment(CropAugment):
    """FFF's recipe as its text names it: random resized crop, flip, jitter (.4, .4, .4, .1), Gaussian blur 0.1-2.0.

    The paper gives the parts and their ranges, and neither probabilities nor the scale of crops. The defaults are those
    of SLIP and MoCo v3. The paper follows DeCLIP, whose code has other crops, and greyscale: that is `declip`.
    """

    kind: Literal["fff"] = "fff"  # type: ignore[assignment]
    is_random: ClassVar[bool] = True
    jitter: float = Field(0.8, ge=0, le=1)
    """Probability of colour jitter."""
    brightness: float = Field(0.4, ge=0, le=1)
    """Factors are drawn from 1 - this to 1 + this."""
    contrast: float = Field(0.4, ge=0, le=1)
    """Factors are drawn from 1 - this to 1 + this."""
    saturation: float = Field(0.4, ge=0, le=1)
    """Factors are drawn from 1 - this to 1 + this."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Shifts are drawn from -this to this, in turns of the colour wheel."""
    blur: float = Field(0.5, ge=0, le=1)
    """Probability of a Gaussian blur."""
    min_sigma: float = Field(0.1, gt=0, le=10)
    """Smallest standard deviation of the blur in pixels."""
    max_sigma: float = Field(2.0, gt=0, le=10)
    """Largest standard deviation of the blur in pixels."""


class SimCLRAugment(FFFAugment):
    """SimCLR's recipe as SLIP has it: FFF's parts, crops of .08 to 1, and greyscale."""

    kind: Literal["simclr"] = "simclr"  # type: ignore[assignment]
    is_random: ClassVar[bool] = True
    min_scale: float = Field(0.08, gt=0, le=1)
    """Smallest share of the image's area that a crop covers."""
    greyscale: float = Field(0.2, ge=0, le=1)
    """Probability of greyscale."""


class DeCLIPAugment(SimCLRAugment):
    """DeCLIP's recipe, which FFF follows, as its code has it: `MOCOV2` in `prototype/data/imagenet_dataloader.py`.

    Crops of .2 to 1, resized bilinearly, jitter (.4, .4, .4, .1), greyscale, blur 0.1-2.0, and the flip last.
    """

    kind: Literal["declip"] = "declip"  # type: ignore[assignment]
    is_random: ClassVar[bool] = True
    min_scale: float = Field(0.2, gt=0, le=1)
    """Smallest share of the image's area that a crop covers."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How crops are resized. The other augmentations are bicubic."""


Augment = Annotated[NoAugment | CropAugment | FFFAugment | SimCLRAugment | DeCLIPAugment, Field(discriminator="kind")]
