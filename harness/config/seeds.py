"""Seeds in specs: a number of seeds, or a list of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from harness.config.experiment import SEEDS


def listed(seeds: int | tuple[int, ...]) -> tuple[int, ...]:
    """The list of seeds; a number n means 0 to n - 1."""
    return tuple(range(seeds)) if isinstance(seeds, int) else seeds


def _some(seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
    each = listed(seeds)
    if not each or len(set(each)) != len(each) or min(each) < 0 or max(each) >= SEEDS:
        raise ValueError(f"give at least one seed; seeds must differ, must not be negative and must be below {SEEDS}")
    return seeds


Seeds = Annotated[int | tuple[int, ...], AfterValidator(_some)]
