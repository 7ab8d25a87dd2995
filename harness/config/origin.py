"""Where a spec states a key: the file and the line, through `experiment` and `extends`."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.config.overrides import expand

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_PATH = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_PATH})\s*\]\]?\s*(?:#.*)?")
_STATEMENT = re.compile(rf"\s*({_PATH})\s*=")

Parts = tuple[str, ...]


def with_line(error: HarnessError) -> str:
    """The sentence of `error` alone, without its `others`; if its place is a key of a TOML file, with the line."""
    file, _, key = (error.where or "").partition(".toml: ")
    path = Path(f"{file}.toml")
    where = _place(path, tuple(key.split("."))) if key and path.is_file() else error.where
    return str(type(error)(error.what, where=where, fix=error.fix))


def stated_at(file: Path, key: str, arm: str | None = None) -> str:
    """`FILE:LINE: KEY` of the statement that gives `key` of the experiment of `arm` its value.

    That is the arm's own, the ablation's base, or the nearest file that `experiment` or `extends` leads to. A key that
    has its default is placed in `file`, without a line.
    """
    parts = tuple(key.split("."))
    tables: list[Parts] = [("arms", *arm.split("."))] if arm is not None else []
    for one, above in _candidates(file, [*tables, ("base",), ("experiment",), ()]):
        if _states(_table(one), (*above, *parts)):
            return _place(one, (*above, *parts))
    return f"{file}: {key}"


def line_of(text: str, key: Parts) -> int | None:
    """The number of the line that states `key` of a TOML text, or else the longest table above it that is stated."""
    best, found = 0, None
    table: Parts = ()
    repeats: Counter[Parts] = Counter()
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if header := _HEADER.fullmatch(line.rstrip("\r\n")):
            path = _parts(header[2])
            if header[1] == "[[":
                table, repeats[path] = (*path[:-1], f"{path[-1]}[{repeats[path]}]"), repeats[path] + 1
            else:
                table = path
            stated = table
        elif statement := _STATEMENT.match(line):
            stated = (*table, *_parts(statement[1]))
        else:
            continue
        if best < min(len(stated), len(key)) and _leads_to(stated, key) and _begins_a_statement(lines[: number - 1]):
            best, found = min(len(stated), len(key)), number
    return found


def _candidates(file: Path, tables: list[Parts]) -> Iterator[tuple[Path, Parts]]:
    """Files and the tables in them that may state a field of the experiment, the strongest first."""
    seen: set[Path] = set()
    experiment: Path | None = None
    while file.is_file() and file.resolve() not in seen:
        seen.add(file.resolve())
        yield from ((file, above) for above in tables)
        content = _table(file)
        # an ablation's base is the nearest that is stated, but the arms of an ablation that it extends are stronger
        if "experiment" in content and ("experiment",) in tables:
            tables = [table for table in tables if table != ("experiment",)]
            if isinstance(content["experiment"], str):
                experiment = file.parent / Path(content["experiment"]).expanduser()
        if isinstance(content.get("extends"), str):
            file = file.parent / Path(content["extends"]).expanduser()
        elif experiment is not None:
            file, tables, experiment = experiment, [()], None
        else:
            return


def _table(file: Path) -> Mapping[str, Any]:
    return expand(tomllib.loads(file.read_text(encoding="utf-8")))


def _states(table: Any, key: Parts) -> bool:
    for part in key:
        name, _, number = part.partition("[")
        if not isinstance(table, Mapping) or name not in (table := expand(table)):
            return False
        table = table[name]
        if number:
            table = table[int(number.rstrip("]"))]
    return True


def _place(file: Path, key: Parts) -> str:
    line = line_of(file.read_text(encoding="utf-8", errors="replace"), key)
    return f"{file}:{line}: {'.'.join(key)}" if line else f"{file}: {'.'.join(key)}"


def _parts(path: str) -> Parts:
    """The keys of a dotted path. A quoted key with dots in it is a path itself, as in `[axes]`."""
    return tuple(part for one in re.findall(_PART, path) for part in one.strip("\"'").split("."))


def _leads_to(stated: Parts, key: Parts) -> bool:
    """Whether `stated` is `key` or a table above it. An array that is written in one piece leads to all its items."""
    if len(stated) > len(key):
        return stated[: len(key)] == key
    last = key[len(stated) - 1]
    return stated[:-1] == key[: len(stated) - 1] and stated[-1] in (last, last.partition("[")[0])


def _begins_a_statement(above: list[str]) -> bool:
    """Whether what follows `above` is outside arrays and texts of several lines."""
    try:
        tomllib.loads("".join(above))
    except ValueError:
        return False
    return True
