"""Changes to specs: merging of nested tables, dotted paths, and validation after every change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from harness.base.errors import SpecError
from harness.config.base import Spec

Table = dict[str, Any]
SpecT = TypeVar("SpecT", bound=Spec)


class Whole(dict[str, Any]):
    """A table that replaces the table below it instead of being merged into it: the content of a file."""


def expand(table: Mapping[str, Any]) -> Table:
    """Dotted keys as nested tables: `{"a.b": 1, "a": {"c": 2}}` becomes `{"a": {"b": 1, "c": 2}}`."""
    nested: Table = {}
    for key, value in table.items():
        *parents, last = key.split(".")
        one: Table = {last: value}
        for parent in reversed(parents):
            one = {parent: one}
        nested = merge(nested, one)
    return nested


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Table:
    """`base` with `changes` merged into it, table by table.

    A table with another `kind` replaces the base's table, because the fields of one kind do not apply to another; a
    list of `terms` is that of a sum. A table whose keys are positions in the base's list (`{"1": ...}`) changes these.
    """
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, list | tuple) and _are_positions(value, len(below)):
            by_position = merge({str(position): one for position, one in enumerate(below)}, value)
            merged[key] = list(by_position.values())
        elif isinstance(value, Mapping) and isinstance(below, Mapping) and not _replaces(value, below):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _replaces(value: Mapping[str, Any], below: Mapping[str, Any]) -> bool:
    kind = value.get("kind", "sum" if isinstance(value.get("terms"), list | tuple) else None)
    return isinstance(value, Whole) or (kind is not None and kind != below.get("kind", kind))


def _are_positions(table: Mapping[str, Any], length: int) -> bool:
    return bool(table) and all(key in map(str, range(length)) for key in table)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse `"train.duration='300 steps'"` or `"captions.count=5"` into (dotted path, value).

    The value is TOML; if it is not valid TOML, it is plain text.

    Raises:
        SpecError: there is no `=`, or no path before it.
    """
    import tomllib

    path, equals, value = text.partition("=")
    path, value = path.strip(), value.strip()
    if not equals or not path:
        raise SpecError(f"{text!r} assigns no value", where="--set", fix="write --set path.to.field=value")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value


def laid_over(spec: SpecT, *layers: Mapping[str, Any]) -> SpecT:
    """`spec` with the layers of changes merged into its tables in order, and validated.

    Sections that do not change are shared with `spec`.

    Raises:
        pydantic.ValidationError: the result is not valid.
    """
    fields = {name: getattr(spec, name) for name in type(spec).model_fields}
    for name in dict.fromkeys(name for layer in layers for name in layer):
        below = fields.get(name)
        section = {name: below.table if isinstance(below, Spec) else below}
        for layer in layers:
            if name in layer:
                section = merge(section, {name: layer[name]})
        fields.update(section)
    return type(spec).model_validate(fields)
