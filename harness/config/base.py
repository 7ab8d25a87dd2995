"""The base of every spec: frozen, closed, finite, documented by its attribute docstrings."""

from __future__ import annotations

from collections.abc import Generator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from harness.base.duration import Duration


class Spec(BaseModel):
    """A frozen value that describes what to do.

    `algorithm` is the version of the code behind a spec. Raise it in a subclass whenever the same fields begin to
    give another result: this changes the ids of all runs that use the spec, and no others.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    algorithm: ClassVar[int] = 1

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a kind without a value for a class variable that its base declares, such as `needs_teacher`.

        Raises:
            TypeError: a class variable has no value.
        """
        super().__pydantic_init_subclass__(**kwargs)
        open_ = sorted(name for name in cls.__class_vars__ if not hasattr(cls, name))
        if open_ and "kind" in cls.model_fields:
            raise TypeError(f"{cls.__name__} has to state {', '.join(open_)}: there is no default")

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """Names and values of the fields, as `dict(spec)` takes them: without what is cached on the object."""
        return ((name, getattr(self, name)) for name in type(self).model_fields)

    @classmethod
    def kind_name(cls) -> str:
        """Value of `kind` in specs of this class."""
        return str(cls.model_fields["kind"].default)

    def irrelevant(self) -> frozenset[str]:
        """Names of fields without effect given the other fields (paths, or `source` when `count` is 0)."""
        return frozenset()

    def idle(self) -> frozenset[str]:
        """Names of fields that cannot distinguish this spec from another one, because they have no effect here."""
        return self.irrelevant()

    def science(self, *, defaults: bool = False) -> dict[str, Any]:
        """The part of this spec that can change a result, as JSON data in which equal numbers look the same.

        Fields at their default are left out unless `defaults`, so that a new field keeps the ids of old runs.
        A `kind` is always kept, because it determines the defaults of the other fields. A spec whose `algorithm` was
        raised is also kept. Calls share the nested tables; do not modify them.
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
        """This spec as JSON data, cached because arms share most of their sections. Do not modify it."""
        return self.model_dump(mode="json")


class LoadedSpec(Spec):
    """A spec that can have a file of its own. The file is not a field, so it does not affect equality."""

    @property
    def file(self) -> Path | None:
        """The file that the spec was loaded from; None for a spec made in Python."""
        found: Path | None = self.__dict__.get("_file")
        return found

    def remember_file(self, file: Path) -> None:
        """Store the file that the spec was loaded from."""
        self.__dict__["_file"] = file


@cache
def _defaults(spec: type[Spec]) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in spec.model_fields.items()
    }


def _is_other(value: Any, default: Any) -> bool:
    """Whether a field belongs in the science: its value differs from the default, or its `algorithm` was raised."""
    if isinstance(default, Spec) and isinstance(value, Spec):
        science = _science(value, defaults=False)
        return science != _science(default, defaults=False) or _is_revised(science)
    return bool(value != default)


def _is_revised(science: dict[str, Any]) -> bool:
    return "algorithm" in science or any(isinstance(below, dict) and _is_revised(below) for below in science.values())


def _science(spec: Spec, *, defaults: bool) -> dict[str, Any]:
    """The spec's science, cached on the object because arms share the sections that they do not change."""
    name = "_whole_science" if defaults else "_brief_science"
    known: dict[str, Any] | None = spec.__dict__.get(name)
    if known is None:
        known = spec.__dict__[name] = spec.science(defaults=defaults)
    return known


def plain(value: Any, defaults: bool) -> Any:
    """`value` as JSON data in which equal values look the same: 1.0 becomes 1, a spec becomes its science."""
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
            raise TypeError(f"{value!r} cannot be part of a run's identity")
