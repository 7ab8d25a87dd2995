"""Losses between features and prototypes, the centres of clusters of the features of many batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.base.errors import SpecError
from harness.config.losses.base import LossSpec, Positive


class Prototypes(LossSpec):
    """Contrast of images and captions with prototypes that the other modality chooses (ProtoCLIP, Chen et al., 2022).

    An episode is a number of samples. The features of its images and captions are kept, and at its end K-means makes
    prototypes of them, which the next episode trains against. The first episode has none: the term is 0.
    """

    kind: Literal["prototypes"] = "prototypes"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = True
    pairs_modalities: ClassVar[bool] = False

    prototypes: int = Field(20_000, ge=2)
    """Number of prototypes of each modality; at most the samples of an episode."""
    episode: int = Field(200_000, ge=2)
    """Samples of an episode, which may be shorter or longer than an epoch. The checkpoint holds their features."""
    iterations: int = Field(20, ge=1)
    """Iterations of K-means."""
    restarts: int = Field(3, ge=1)
    """How often K-means begins with other samples; the tightest clusters are kept."""
    back_translation: bool = True
    """Contrast with the mean features, in the sample's own modality, of the samples of each cluster of the other one.
    Off: with the centres of the other modality's clusters."""
    teacher_scale: Positive | Literal["hard"] = 100.0
    """The factor, 1/temperature, on the similarities between prototypes that soften the target. `"hard"`: the target is
    the nearest prototype alone."""
    head: Literal["mlp", "none"] = "mlp"
    """What lies between the towers' features and the prototypes: a hidden layer with batch norm, of its own for images
    and for captions, or nothing."""
    hidden: int = Field(2048, ge=1)
    """Width of the heads' hidden layer."""
    width: int = Field(128, ge=1)
    """Width of the heads' output."""

    def irrelevant(self) -> frozenset[str]:
        """The widths of heads that there are not."""
        return frozenset({"hidden", "width"} if self.head == "none" else ())

    def check_captions(self, per_image: int) -> None:
        """Require one caption per image."""
        if per_image != 1:
            what = f"prototypes take one caption per image, not {per_image}"
            raise SpecError(what, where="loss", fix="sample one caption")

    def check_training(self, samples: int, seen: int) -> None:
        """Require as many samples as prototypes, and more than one episode."""
        if samples < self.prototypes:
            what = f"prototypes {self.prototypes} are more than the {samples} samples of the data"
            raise SpecError(what, where="loss", fix="lower prototypes")
        if seen <= self.episode:
            what = (
                f"training sees {seen} samples and no more than one episode of {self.episode}: prototypes are not used"
            )
            raise SpecError(what, where="loss", fix="lower episode, or train for longer")

    def brief(self, batch: int) -> dict[str, Any]:
        """An episode of one batch."""
        return {"episode": batch, "prototypes": min(self.prototypes, batch)}

    @model_validator(mode="after")
    def _has_samples_for_each(self) -> Prototypes:
        if self.prototypes > self.episode:
            what = f"prototypes {self.prototypes} are more than the samples of an episode, {self.episode}"
            raise ValueError(f"{what}; lower prototypes, or raise episode")
        return self
