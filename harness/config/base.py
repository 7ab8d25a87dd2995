"""The base of every spec: frozen, closed, finite, documented by its attribute docstrings."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from harness.base.duration import Duration


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
        A `kind` is always kept: it says which defaults the rest is measured against. So is a spec whose `algorithm`
        was raised. Tables below are shared between calls; change none of them.
        """
        skipped = self.irrelevant()
        kept: dict[str, Any] = {}
        for name, default in _defaults(type(self)).items():
            value = getattr(self, name)
            if name not in skipped and (defaults or name == "kind" or _is_other(value, default)):
                kept[name] = plain(value, defaults)
        if self.algorithm != 1:
            kept["algorithm"] = self.algorithm
        return kept

    @cached_property
    def table(self) -> dict[str, Any]:
        """This spec as JSON data, made once: arms share most of their sections. Change nothing in it."""
        return self.model_dump(mode="json")


class FileSpec(Spec):
    """A spec that a file may hold on its own. The file is no field: two specs are equal wherever they come from."""

    @property
    def file(self) -> Path | None:
        """The file that it was loaded from; None for a spec made in Python."""
        found: Path | None = self.__dict__.get("_file")
        return found

    def remember_file(self, file: Path) -> None:
        """Remember the file that it was loaded from."""
        self.__dict__["_file"] = file


@cache
def _defaults(spec: type[Spec]) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in spec.model_fields.items()
    }


def _is_other(value: Any, default: Any) -> bool:
    """Whether a field has to be in the science: it is not at its default in what can matter, or its code is not."""
    if isinstance(default, Spec) and isinstance(value, Spec):
        science = _science(value, defaults=False)
        return science != _science(default, defaults=False) or _is_revised(science)
    return bool(value != default)


def _is_revised(science: dict[str, Any]) -> bool:
    return "algorithm" in science or any(isinstance(below, dict) and _is_revised(below) for below in science.values())


def _science(spec: Spec, *, defaults: bool) -> dict[str, Any]:
    """The spec's science, found out once for each object: arms share those of the sections that they do not change."""
    name = "_whole_science" if defaults else "_brief_science"
    known: dict[str, Any] | None = spec.__dict__.get(name)
    if known is None:
        known = spec.__dict__[name] = spec.science(defaults=defaults)
    return known


def plain(value: Any, defaults: bool) -> Any:
    """`value` as JSON data in which what is equal looks the same: 1.0 as 1, specs as their science."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return int(value) if value.is_integer() and abs(value) < 2**53 else value
        case Spec():
            return _science(value, defaults=defaults)
        case Duration():
            return str(value)
        case dict():
            return {str(key): plain(item, defaults) for key, item in sorted(value.items())}
        case list() | tuple():
            return [plain(item, defaults) for item in value]
        case _:
            raise TypeError(f"{value!r} has no place in a run's identity")
