"""The house in figures: `python -m tests.house` prints rooms, arrows, circles, levels, and class names used twice.

A room is a folder or a loose module directly below `harness/`. An arrow is an import from one room into another, be it
at the top of a file or inside a function. A level is the longest way down from a room. A class name is used
twice where two modules define a public class of that name.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import harness

PACKAGE = Path(harness.__file__).parent
Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class House:
    """What the files of the package say."""

    rooms: tuple[str, ...]
    loose: tuple[str, ...]
    """Rooms that are single modules."""
    arrows: tuple[tuple[str, str], ...]
    circles: tuple[tuple[str, ...], ...]
    """Modules that import each other, directly or not."""
    room_circles: tuple[tuple[str, ...], ...]
    levels: tuple[tuple[str, ...], ...]
    """Rooms by the longest way down, the ground first."""
    classes: Mapping[str, tuple[str, ...]]
    """Public classes that several modules define."""
    modules: int
    lines: int


def measure(package: Path = PACKAGE) -> House:
    """Read every module of the package; nothing is imported."""
    files = {_dotted(package, file): file for file in sorted(package.rglob("*.py"))}
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    imports = {name: frozenset(_imports(name, tree, trees.keys())) for name, tree in trees.items()}
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, targets in imports.items():
        rooms[_room(name)] |= {_room(target) for target in targets} - {_room(name), package.name}
    rooms.pop(package.name, None)
    graph = {name: frozenset(below) for name, below in rooms.items()}
    named = sorted(set(graph) - {"__main__"})
    defined: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined[node.name].append(name)
    return House(
        rooms=tuple(named),
        loose=tuple(name for name in named if (package / f"{name}.py").exists()),
        arrows=tuple(sorted((one, below) for one in graph for below in graph[one])),
        circles=_circles(imports),
        room_circles=_circles(graph),
        levels=_levels(graph),
        classes={name: tuple(where) for name, where in sorted(defined.items()) if len(where) > 1},
        modules=len(files),
        lines=sum(file.read_text(encoding="utf-8").count("\n") for file in files.values()),
    )


def _dotted(package: Path, file: Path) -> str:
    parts = (package.name, *file.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def _imports(module: str, tree: ast.Module, known: Iterable[str]) -> Iterator[str]:
    names = set(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in names and one.name != module)
        elif isinstance(node, ast.ImportFrom) and node.module in names and node.module != module:
            parts = [f"{node.module}.{one.name}" for one in node.names]
            yield from (part if part in names else node.module for part in parts if part != module)


def _levels(graph: Graph) -> tuple[tuple[str, ...], ...]:
    height: dict[str, int] = {}

    def of(room: str, above: frozenset[str]) -> int:
        if room not in height:
            below = [of(one, above | {room}) for one in graph.get(room, ()) if one not in above]
            height[room] = 1 + max(below, default=0)
        return height[room]

    for room in graph:
        of(room, frozenset({room}))
    return tuple(tuple(sorted(room for room in graph if height[room] == one)) for one in sorted(set(height.values())))


def _circles(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for one in graph.get(node, ()):
            if one not in index:
                visit(one)
                low[node] = min(low[node], low[one])
            elif one in stack:
                low[node] = min(low[node], index[one])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(part := stack[at:]) > 1:
                found.append(tuple(sorted(part)))
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return tuple(sorted(found))


def main() -> None:
    """Print the figures."""
    house = measure()
    print(f"{house.modules} modules, {house.lines} lines")
    print(f"{len(house.rooms)} rooms, {len(house.loose)} of them single modules: {', '.join(house.loose)}")
    print(f"{len(house.arrows)} arrows between rooms, {len(house.levels)} levels")
    for number, level in reversed(list(enumerate(house.levels, 1))):
        print(f"  {number:2} {', '.join(level)}")
    for name, circles in (("between modules", house.circles), ("between rooms", house.room_circles)):
        print(f"{len(circles)} circles {name}")
        for circle in circles:
            print(f"  {', '.join(circle)}")
    print(f"{len(house.classes)} public class names stand for several things")
    for name, where in house.classes.items():
        print(f"  {name}: {', '.join(where)}")


if __name__ == "__main__":
    main()
