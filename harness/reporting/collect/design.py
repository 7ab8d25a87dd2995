"""The factorial design of an ablation: its factors, their levels, and which arm stands where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config.ablation import Ablation
from harness.config.axes import level_name, named_cells
from harness.reporting.formats.numbers import clean

ARMS = "arm"
"""The factor that named arms are the levels of, where axes multiply them."""


@dataclass(frozen=True)
class Design:
    """Factors and levels, as they are printed."""

    factors: Mapping[str, tuple[str, ...]]
    """The levels of each factor, in declared order; factors of one level are left out."""
    places: Mapping[str, Mapping[str, str]]
    """For each arm, its level of every factor."""
    is_product: bool
    """Whether every combination is declared, so that rows and columns can be laid out."""

    def arm_at(self, levels: Mapping[str, str]) -> str | None:
        """The arm at these levels of all factors."""
        return next((arm for arm, place in self.places.items() if dict(place) == dict(levels)), None)


def design_of(ablation: Ablation) -> Design:
    """The design; without factors where arms are only named, or axes go side by side."""
    if not ablation.axes or ablation.combine == "zip":
        return Design({}, {}, False)
    names = list(ablation.arms) or [""]
    words = {path: {_key(level): told(level, levels) for level in levels} for path, levels in ablation.axes.items()}
    places = {}
    for name in names:
        for cell, levels in named_cells(ablation.axes, ablation.combine, ablation.exclude):
            place = {path: words[path][_key(levels[path])] for path in ablation.axes}
            arm = ", ".join(part for part in (name, cell) if part)
            places[arm] = ({ARMS: clean(ablation.labels.get(name, name))} if name else {}) | place
    used = {factor: tuple(dict.fromkeys(place[factor] for place in places.values())) for factor in _first(places)}
    factors = {factor: levels for factor, levels in used.items() if len(levels) > 1}
    kept = {arm: {factor: place[factor] for factor in factors} for arm, place in places.items()}
    return Design(factors, kept, ablation.combine == "product" and not ablation.exclude)


def told(level: Any, levels: Sequence[Any]) -> str:
    """A level in words that tell it from the others of its axis."""
    if isinstance(level, dict) and len(level) == 1 and "kind" not in level:
        return clean(" ".join(map(str, next(iter(level.items())))))
    name = level_name(level)
    alone = [level_name(other) for other in levels].count(name) == 1
    return clean(name if alone else json.dumps(level, sort_keys=True))


def factor_name(factor: str) -> str:
    """A factor as it is printed: `mining.kind` is the choice of mining."""
    return clean(factor.removesuffix(".kind"))


def _key(level: Any) -> str:
    return json.dumps(level, sort_keys=True, default=str)


def _first(places: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    return next(iter(places.values()), {})
