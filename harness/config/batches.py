"""Which samples share a batch: drawn at random, or similar pairs together (GRIT-VLP)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.config.base import Spec


class BatchesSpec(Spec):
    """Base of every kind of batches. Its class variable has no default."""

    needs_teacher: ClassVar[bool]
    """It reads the frozen teacher's features."""

    def check(self, global_batch_size: int) -> None:
        """Check that batches of this size are possible.

        Raises:
            ValueError: they are not.
        """


class RandomBatches(BatchesSpec):
    """Every epoch is a new random order of all samples."""

    kind: Literal["random"] = "random"
    needs_teacher: ClassVar[bool] = False


class GroupedBatches(BatchesSpec):
    """GRIT-VLP's grouped mini-batches: similar pairs share a batch, so negatives are hard (and often false).

    An epoch's random order is split into search spaces. A greedy walk through each goes from an image to the nearest
    unused caption, and from that sample's caption to the nearest image, so that similar samples are neighbours. The
    walk is split into batches, which are shuffled. Similarities are the teacher's; GRIT-VLP uses those of the student
    in the previous epoch.
    """

    kind: Literal["grouped"] = "grouped"
    needs_teacher: ClassVar[bool] = True
    search_space: int = Field(default=4800, ge=2)
    """Samples in a search space: a multiple of the global batch size. Larger spaces give harder batches."""

    def check(self, global_batch_size: int) -> None:
        """The search space holds whole batches."""
        space, size = self.search_space, global_batch_size
        if space % size:
            what = f"train.batches.search_space {space} is not a multiple of train.global_batch_size {size}"
            raise ValueError(f"{what}; use {max(space // size, 1) * size}")


Batches = Annotated[RandomBatches | GroupedBatches, Field(discriminator="kind")]
