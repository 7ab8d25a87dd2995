"""Which samples share a batch: drawn at random, similar pairs together (GRIT-VLP), or one source alone (ZeroVL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.base.errors import SpecError
from harness.config.base import Spec


class BatchesSpec(Spec):
    """Base of every kind of batches. Its class variables have no default."""

    needs_teacher: ClassVar[bool]
    """It reads the frozen teacher's features."""
    needs_mixture: ClassVar[bool]
    """It tells the sources of a mixture apart."""

    def check(self, global_batch_size: int) -> None:
        """Check that batches of this size are possible.

        Raises:
            ValueError: they are not.
        """

    def check_sources(self, samples: Mapping[str, int], global_batch_size: int) -> None:
        """Check that the sources of a mixture, with their numbers of samples, fill batches of this size.

        Raises:
            SpecError: a source has too few samples.
        """


class RandomBatches(BatchesSpec):
    """Every epoch is a new random order of all samples."""

    kind: Literal["random"] = "random"
    needs_teacher: ClassVar[bool] = False
    needs_mixture: ClassVar[bool] = False


class GroupedBatches(BatchesSpec):
    """GRIT-VLP's grouped mini-batches: similar pairs share a batch, so negatives are hard (and often false).

    An epoch's random order is split into search spaces. A greedy walk through each goes from an image to the nearest
    unused caption, and from that sample's caption to the nearest image, so that similar samples are neighbours. The
    walk is split into batches, which are shuffled. Similarities are the teacher's; GRIT-VLP uses those of the student
    in the previous epoch.
    """

    kind: Literal["grouped"] = "grouped"
    needs_teacher: ClassVar[bool] = True
    needs_mixture: ClassVar[bool] = False
    search_space: int = Field(default=4800, ge=2)
    """Samples in a search space: a multiple of the global batch size. Larger spaces give harder batches."""

    def check(self, global_batch_size: int) -> None:
        """The search space holds whole batches."""
        space, size = self.search_space, global_batch_size
        if space % size:
            what = f"train.batches.search_space {space} is not a multiple of train.global_batch_size {size}"
            raise ValueError(f"{what}; use {max(space // size, 1) * size}")


class DebiasedBatches(BatchesSpec):
    """ZeroVL's debiased sampling (Cui et al., ECCV 2022): all samples of a batch are from one source of a mixture, so
    that the model cannot tell pairs apart by their source.

    Each source is visited in passes of its own. The last samples of a pass that do not fill a batch share their next
    batch with the first of the next pass: no sample is left out, and none is twice in a batch. Every source has its
    share of the batches to within one batch. The order of an epoch's batches is random.
    """

    kind: Literal["debiased"] = "debiased"
    needs_teacher: ClassVar[bool] = False
    needs_mixture: ClassVar[bool] = True

    def check_sources(self, samples: Mapping[str, int], global_batch_size: int) -> None:
        """Every source has two batches or more: fewer could put a sample twice into the batch that two passes share."""
        for name, count in samples.items():
            if count < 2 * global_batch_size:
                what = f"the source {name} has {count:,} samples, fewer than two batches of {global_batch_size:,}"
                fix = "make the batch smaller, join the source with another one, or take random batches"
                raise SpecError(what, where='train.batches.kind = "debiased"', fix=fix)


Batches = Annotated[RandomBatches | GroupedBatches | DebiasedBatches, Field(discriminator="kind")]
