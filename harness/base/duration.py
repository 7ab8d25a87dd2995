"""Training durations with a unit: "8 epochs", "2000 steps", "1e6 samples"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Unit = Literal["epochs", "steps", "samples"]
_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
_PATTERN = re.compile(rf"^\s*({_NUMBER})\s*(epoch|step|sample)s?\s*$")


@dataclass(frozen=True)
class Duration:
    """An amount of training. In specs it is written as text: `"8 epochs"`, `"2000 steps"`, `"1e6 samples"`."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Parse a text such as `"300 steps"`.

        Raises:
            ValueError: the text has no number or no known unit.
        """
        match = _PATTERN.match(text)
        if match is None or not math.isfinite(float(match[1])):
            raise ValueError(f'{text!r} is not a duration; write a number and a unit, as in "8 epochs" or "2000 steps"')
        units: dict[str, Unit] = {"epoch": "epochs", "step": "steps", "sample": "samples"}
        return cls(float(match[1]), units[match[2]])

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount.is_integer() else self.amount
        return f"{amount} {self.unit}"

    def steps(self, *, samples_per_epoch: int, global_batch_size: int) -> int:
        """Convert to whole optimiser steps; an epoch has `samples_per_epoch // global_batch_size` steps."""
        match self.unit:
            case "steps":
                steps = self.amount
            case "samples":
                steps = self.amount / global_batch_size
            case "epochs":
                steps = self.amount * (samples_per_epoch // global_batch_size)
        return math.floor(steps + 1e-9)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": _PATTERN.pattern, "examples": ["8 epochs", "2000 steps", "1e6 samples"]}

    @classmethod
    def _validate(cls, value: Any) -> Duration:
        if isinstance(value, Duration):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise ValueError(f'{value!r} has no unit; write "{value} steps", "{value} epochs" or "{value} samples"')
