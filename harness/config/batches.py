"""Which samples share a batch: drawn at random, or similar pairs together (GRIT-VLP)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.config.base import Spec


class BatchesSpec(Spec):
    """What every way of making batches states; the class variable has no default."""

    needs_teacher: ClassVar[bool]
    """It reads the frozen teacher's features."""

    def check(self, global_batch_size: int) -> None:
        """That batches of this size can be made.

        Raises:
            ValueError: they can't.
        """


class RandomBatches(BatchesSpec):
    """Every epoch is a new random order of all samples."""

    kind: Literal["random"] = "random"
    needs_teacher: ClassVar[bool] = False


class GroupedBatches(BatchesSpec):
    """GRIT-VLP's grouped mini-batches: similar pairs share a batch, so its negatives are hard (and often false).

    An epoch's random order is cut into search spaces; a greedy walk through each, from an image to the nearest
    caption not yet taken and on to the image nearest to that caption's, puts similar samples side by side; the
    batches cut from it are shuffled. Similarities are the teacher's, not the previous epoch's student's as in GRIT-VLP.
    """

    kind: Literal["grouped"] = "grouped"
    needs_teacher: ClassVar[bool] = True
    search_space: int = Field(default=4800, ge=2)
    """Samples among which similar ones are sought; a multiple of the global batch size. Larger makes harder batches."""

    def check(self, global_batch_size: int) -> None:
        """The search space holds whole batches."""
        space, size = self.search_space, global_batch_size
        if space % size:
            what = f"train.batches.search_space {space} is not a multiple of train.global_batch_size {size}"
            raise ValueError(f"{what}; use {max(space // size, 1) * size}")


Batches = Annotated[RandomBatches | GroupedBatches, Field(discriminator="kind")]
