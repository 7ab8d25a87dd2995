"""Cost beside quality: which arms no other arm beats at a lower price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from harness.reporting.collect.comparison import Column
from harness.reporting.collect.results import Results
from harness.runs.record import Record


@dataclass(frozen=True)
class Price:
    """What a run costs, in one way of counting."""

    key: str
    name: str
    units: tuple[tuple[float, str], ...]
    """What it is told in, the largest first: how much of `of` one of them is, and its name."""
    of: Callable[[Record], float | None]

    def unit(self, prices: Iterable[float]) -> tuple[float, str]:
        """The unit in which the largest of `prices` is 1 or more, with its size."""
        largest = max(prices, default=0.0)
        return next((one for one in self.units if largest >= one[0]), self.units[-1])


_FLOPS = ((1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"))
_TIME = ((1.0, "device-hours"), (1 / 60, "device-minutes"), (1 / 3600, "device-seconds"))
HOURS = Price("hours", "Training time of all devices", _TIME, lambda record: record.cost.device_hours)
COMPUTE = Price("flops", "Training compute", _FLOPS, lambda record: record.cost.flops)
SPEED = Price("seconds", "Time for an image", ((1.0, "ms"),), lambda record: 1000 / record.cost.images_per_s)
PRICES = (HOURS, COMPUTE, SPEED)
"""Lower is cheaper in each; time for an image is the inverse of images per second."""


@dataclass(frozen=True)
class Offer:
    """An arm's price and quality, means over its seeds."""

    arm: str
    price: float
    quality: float
    on_front: bool


def offers(results: Results, column: Column, price: Price) -> list[Offer]:
    """Every comparable arm, cheapest first; empty where fewer than two have a price."""
    prices = _prices(results, price)
    found = [(arm.arm, prices[arm.arm], arm.summary.mean) for arm in column.comparable if arm.summary]
    priced = [(arm, cost, quality) for arm, cost, quality in found if cost is not None]
    if len(priced) < 2:
        return []
    front = pareto_front({arm: (cost, quality) for arm, cost, quality in priced}, column.higher_is_better)
    return [Offer(arm, cost, quality, arm in front) for arm, cost, quality in sorted(priced, key=lambda one: one[1])]


def pareto_front(points: Mapping[str, tuple[float, float]], higher_is_better: bool = True) -> frozenset[str]:
    """Names of the points (price, quality) that no other point matches at no higher price and no worse quality.

    Of two points that are equal in both, both stay.
    """
    sign = 1 if higher_is_better else -1
    turned = {name: (price, sign * quality) for name, (price, quality) in points.items()}
    front, best = set(), float("-inf")
    for price in sorted({price for price, _ in turned.values()}):
        alike = {name: quality for name, (cost, quality) in turned.items() if cost == price}
        top = max(alike.values())
        if top > best:
            front |= {name for name, quality in alike.items() if quality == top}
            best = top
    return frozenset(front)


def _prices(results: Results, price: Price) -> dict[str, float | None]:
    """Each arm's price, mean over its finished runs; None where a run does not say."""
    found: dict[str, float | None] = {}
    for arm, runs in results.by_arm.items():
        told = [price.of(run.record) for run in runs if run.record]
        known = [one for one in told if one is not None]
        found[arm] = fmean(known) if known and len(known) == len(told) else None
    return found
