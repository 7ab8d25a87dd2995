"""Seeds in specs: a number of seeds, or a list of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

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
