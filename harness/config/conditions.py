"""Conditions between fields: comparisons such as `mining.image_text_guard < mining.image_text`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

_COMPARISON = re.compile(r"^\s*(\S+?)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*$")
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Condition:
    """A comparison of two fields, or of a field with a number or name."""

    text: str
    left: str | float
    sign: str
    right: str | float

    @property
    def paths(self) -> tuple[str, ...]:
        """The fields that the condition compares: sides that have a dot and are not numbers."""
        return tuple(side for side in (self.left, self.right) if isinstance(side, str) and "." in side)

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raise ValueError unless the condition holds. It holds if the configuration lacks one of the fields."""
        known: Mapping[str | float, Any] = {path: fields.get(path) for path in self.paths}
        sides = [known.get(side, side) for side in (self.left, self.right)]
        if None in sides:
            return
        try:
            holds = _OPERATORS[self.sign](*sides)
        except TypeError:
            raise ValueError(f"condition {self.text!r} compares {sides[0]!r} with {sides[1]!r}") from None
        if not holds:
            raise ValueError(f"condition {self.text!r} does not hold: {sides[0]} {self.sign} {sides[1]}")


@cache
def parse_condition(text: str) -> Condition:
    """The condition that `text` states.

    Raises:
        ValueError: the text is not a comparison, or names no field.
    """
    found = _COMPARISON.match(text)
    if found is None:
        raise ValueError(f"condition {text!r} is not a comparison; write field < field, with <, <=, >, >=, == or !=")
    condition = Condition(text, _side(found[1]), found[2], _side(found[3]))
    if not condition.paths:
        raise ValueError(f"condition {text!r} names no field; write its dotted path, as in mining.image_text")
    return condition


def _side(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")
