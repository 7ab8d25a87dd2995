"""Losses between further views of the images or captions."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.config.losses.base import LossSpec, Positive


class SimCLR(LossSpec):
    """Contrast between two augmentations of each image, through a projection head (Chen et al., ICML 2020)."""

    kind: Literal["simclr"] = "simclr"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    image_views: ClassVar[int] = 2
    pairs_modalities: ClassVar[bool] = False

    logit_scale: Positive = 10.0
    """Start value of the factor 1/temperature on cosines."""
    learn_logit_scale: bool = False
    """Train the factor; off, as published, keeps it at its start value."""
    between: Literal["two_views", "image_and_view"] = "two_views"
    """`two_views`, as in SLIP: two further augmentations of each image, so three passes through the image tower.
    `image_and_view`: the image that captions are compared with, and one further augmentation."""
    head: Literal["mlp", "none"] = "mlp"
    """What lies between the towers' features and the contrast: SLIP's three layers with batch norm, or nothing."""
    hidden: int = Field(4096, ge=1)
    """Width of the head's hidden layers."""
    width: int = Field(256, ge=1)
    """Width of the head's output."""

    @property
    def views_read(self) -> int:
        """One where the image itself is compared."""
        return 2 if self.between == "two_views" else 1

    def irrelevant(self) -> frozenset[str]:
        """The widths of a head that there is not."""
        return frozenset({"hidden", "width"} if self.head == "none" else ())
