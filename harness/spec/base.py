"""The base of every spec: frozen, closed, finite, documented by its attribute docstrings."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from harness.units import Duration


class Spec(BaseModel):
    """A frozen value that says what to do.

    `algorithm` is the version of the code that a spec stands for. Raise it in a subclass whenever the
    same fields begin to give another result: ids of runs that use the spec change, all others stay.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    algorithm: ClassVar[int] = 1

    def irrelevant(self) -> frozenset[str]:
        """Names of fields that cannot change a result as the others stand (paths, or `source` when `count` is 0)."""
        return frozenset()

    def science(self, *, defaults: bool = False) -> dict[str, Any]:
        """The part of this spec that can change a result, as JSON data; numbers that are equal look the same.

        Fields at their default are left out unless `defaults`, so that a new field keeps the ids of old runs.
        A `kind` is always kept: it says which defaults the rest is measured against.
        """
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            changed = value != field.get_default(call_default_factory=True, validated_data={})
            if name not in self.irrelevant() and (defaults or changed or name == "kind"):
                kept[name] = _plain(value, defaults)
        if self.algorithm != 1:
            kept["algorithm"] = self.algorithm
        return kept


def _plain(value: Any, defaults: bool) -> Any:
    if isinstance(value, Spec):
        return value.science(defaults=defaults)
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {str(key): _plain(item, defaults) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(item, defaults) for item in value]
    return value
