"""Which samples share a batch: drawn at random, or similar pairs together (GRIT-VLP)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.config.base import Spec


class RandomBatches(Spec):
    """Every epoch is a new random order of all samples."""

    kind: Literal["random"] = "random"
    needs_teacher: ClassVar[bool] = False


class GroupedBatches(Spec):
    """GRIT-VLP's grouped mini-batches: similar pairs share a batch, so its negatives are hard (and often false).

    An epoch's random order is cut into search spaces; a greedy walk through each, from an image to the nearest
    caption not yet taken and on to the image nearest to that caption's, puts similar samples side by side; the
    batches cut from it are shuffled. Similarities are the teacher's, not the previous epoch's student's as in GRIT-VLP.
    """

    kind: Literal["grouped"] = "grouped"
    needs_teacher: ClassVar[bool] = True
    search_space: int = Field(default=4800, ge=2)
    """Samples among which similar ones are sought; a multiple of the global batch size. Larger makes harder batches."""


Batches = Annotated[RandomBatches | GroupedBatches, Field(discriminator="kind")]
