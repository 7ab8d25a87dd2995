"""Losses between further views of the images or captions."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.config.losses.base import CLIP_SCALE, LossSpec, Positive, Share


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


class MultiView(LossSpec):
    """CLIP between views of the images and views of the captions, averaged over all pairs of views.

    With `originals`, the image and the caption are views too: DeCLIP's multi-view supervision (Li et al., ICLR 2022).
    Without, behind heads and with label smoothing: the strong branch of CLIP-Rocket (Fini et al., TMLR 2023).
    """

    kind: Literal["multi_view"] = "multi_view"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    images: int = Field(1, ge=1)
    """Further augmentations of each image."""
    texts: int = Field(1, ge=1)
    """Further edits of each caption."""
    originals: bool = True
    """Whether the image and the caption themselves are views too."""
    smoothing: Share = 0.0
    """Share of the target that is spread evenly over the batch."""
    head: Literal["mlp", "none"] = "none"
    """What lies between the towers' features and the contrast: three layers with batch norm for each modality, or
    nothing."""
    hidden: int = Field(4096, ge=1)
    """Width of the heads' hidden layers."""
    width: int = Field(256, ge=1)
    """Width of the heads' output."""

    @property
    def views_read(self) -> int:
        """Its number of images."""
        return self.images

    @property
    def text_views_read(self) -> int:
        """Its number of texts."""
        return self.texts

    def irrelevant(self) -> frozenset[str]:
        """The widths of heads that there are not."""
        return frozenset({"hidden", "width"} if self.head == "none" else ())


class InModal(LossSpec):
    """CleanCLIP's contrast within each modality: an image with its augmentation, a caption with its edit.

    (Bansal et al., ICCV 2023.)
    """

    kind: Literal["in_modal"] = "in_modal"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    image_views: ClassVar[int] = 1
    text_views: ClassVar[int] = 1
    pairs_modalities: ClassVar[bool] = False


class SimSiam(LossSpec):
    """Negative cosine between a prediction of one view and the other view, without negatives (Chen and He, CVPR 2021).

    Heads as in DeCLIP, whose image self-supervision it is (Li et al., ICLR 2022).
    """

    kind: Literal["simsiam"] = "simsiam"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    image_views: ClassVar[int] = 2
    pairs_modalities: ClassVar[bool] = False

    learn_logit_scale: Literal[False] = False
    """It has no temperature."""
    between: Literal["two_views", "image_and_view"] = "image_and_view"
    """`image_and_view`: the image that captions are compared with, and one further augmentation, as in DeCLIP.
    `two_views`: two further augmentations of each image."""
    head: Literal["mlp", "none"] = "mlp"
    """What lies behind the towers' features: DeCLIP's projection and prediction, or nothing."""
    width: int = Field(1024, ge=1)
    """Width of the projection's layers."""
    bottleneck: int = Field(512, ge=1)
    """Width of the prediction's hidden layer."""

    @property
    def views_read(self) -> int:
        """One where the image itself is compared."""
        return 2 if self.between == "two_views" else 1

    def irrelevant(self) -> frozenset[str]:
        """The temperature: cosines are not scaled. And the widths of heads that there are not."""
        sizes = {"width", "bottleneck"} if self.head == "none" else set()
        return frozenset({"logit_scale", "learn_logit_scale", "max_logit_scale"} | sizes)


class NegCLIP(LossSpec):
    """CLIP whose images are compared with hard-negative captions too (Yuksekgonul et al., ICLR 2023).

    `train.hard_negatives` says how they are made. The paper's hard-negative images are left out.
    """

    kind: Literal["negclip"] = "negclip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    hard_negatives: ClassVar[bool] = True


class MPNCE(LossSpec):
    """MP-NCE with domain-dependent similarity: UniCLIP's loss (Lee et al., NeurIPS 2022) on the towers' own features.

    Every view of an image and every caption is contrasted with each other one of its pair, against those of all other
    pairs. UniCLIP's heads that know the augmentation are not included.
    """

    kind: Literal["mp_nce"] = "mp_nce"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    images: int = Field(1, ge=0)
    """Further augmentations of each image, beside the image."""
    texts: int = Field(0, ge=0)
    """Further edits of each caption, beside the caption."""
    image_logit_scale: Positive = CLIP_SCALE
    """Start value of the factor between two images. `logit_scale` is that between an image and a caption."""
    text_logit_scale: Positive = CLIP_SCALE
    """Start value of the factor between two captions."""
    learn_offsets: bool = True
    """Train what is added to the scores between two images, and to those between two captions; both start at 0."""

    @property
    def scale_fields(self) -> tuple[str, ...]:
        """Those of all three factors."""
        return ("logit_scale", "image_logit_scale", "text_logit_scale")

    @property
    def views_read(self) -> int:
        """Its number of images."""
        return self.images

    @property
    def text_views_read(self) -> int:
        """Its number of texts."""
        return self.texts
