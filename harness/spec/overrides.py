"""Changing specs: nested tables laid over one another, dotted paths, and validation after every change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import SpecError

Table = dict[str, Any]


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
    """`changes` laid over `base`, table by table.

    A table that states another `kind` than the base's replaces it: the fields of one kind mean nothing to another.
    """
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not _other_kind(below, value):
            merged[key] = merge(below, value)
        else:
            merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def _other_kind(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "kind" in value and value["kind"] != below.get("kind", value["kind"])


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"train.duration='300 steps'"` or `"captions.count=5"` as (dotted path, value); values are TOML, or plain text.

    Raises:
        SpecError: there is no `=`, or no path before it.
    """
    import tomllib

    path, equals, value = text.partition("=")
    path, value = path.strip(), value.strip()
    if not equals or not path:
        raise SpecError(f"{text!r} sets nothing", where="--set", fix="write --set path.to.field=value")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value
