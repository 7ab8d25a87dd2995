"""Seeds in specs: a number of seeds, a list of them, or as many as the claims need."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from harness.config.base import Spec
from harness.config.experiment import SEEDS

MOST_SEEDS = 1000


def listed(seeds: int | tuple[int, ...]) -> tuple[int, ...]:
    """The list of seeds; a number n means 0 to n - 1."""
    return tuple(range(seeds)) if isinstance(seeds, int) else seeds


def _some(seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
    if (seeds if isinstance(seeds, int) else len(seeds)) > MOST_SEEDS:
        raise ValueError(f"gives more than {MOST_SEEDS:,} seeds; give fewer")
    each = listed(seeds)
    if not each or len(set(each)) != len(each) or min(each) < 0 or max(each) >= SEEDS:
        raise ValueError(f"give at least one seed; seeds must differ, must not be negative and must be below {SEEDS}")
    return seeds


Seeds = Annotated[int | tuple[int, ...], AfterValidator(_some)]


class SeedsOnDemand(Spec):
    """Seeds until every claim is decided or is not worth more of them. In TOML: `[seeds]`."""

    until: Literal["decided"]
    """When to stop: when every claim has a verdict, or would hardly get one from all seeds."""
    least: int = Field(default=3, ge=2)
    """Seeds of every arm before the first look."""
    most: int = Field(le=MOST_SEEDS)
    """Seeds of an arm at the last look. The error rate of 5 % holds for all looks up to it together."""

    @model_validator(mode="after")
    def _in_order(self) -> SeedsOnDemand:
        if self.most <= self.least:
            raise ValueError(f"most = {self.most} leaves no seed to add to least = {self.least}: raise it")
        return self

    @property
    def looks(self) -> tuple[int, ...]:
        """Seeds of the arms that go on, at each look: a third more than at the look before, up to `most`."""
        sizes = [self.least]
        while sizes[-1] < self.most:
            sizes.append(min(self.most, sizes[-1] + max(1, sizes[-1] // 3)))
        return tuple(sizes)


def _sort(value: Any) -> str:
    return "demand" if isinstance(value, (dict, SeedsOnDemand)) else "fixed"


Replicates = Annotated[
    Annotated[Seeds, Tag("fixed")] | Annotated[SeedsOnDemand, Tag("demand")],
    Discriminator(_sort),
]
