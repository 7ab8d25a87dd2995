"""Limits on the figures that `python -m tests.house` prints. Raise one only with a reason in the commit's message."""

from __future__ import annotations

import tomllib
from pathlib import Path

import harness
from harness.base.version import PACKAGE, __version__
from tests.house import measure

ROOMS, ARROWS, LEVELS = 25, 121, 13
LOOSE = 4
"""Single modules directly below harness/, besides `worker`, the node's entry point."""
HOUSE = measure()


def test_no_module_imports_itself_through_others() -> None:
    assert HOUSE.circles == ()
    assert HOUSE.room_circles == ()


def test_there_are_few_rooms() -> None:
    assert len(HOUSE.rooms) <= ROOMS, HOUSE.rooms
    assert len(set(HOUSE.loose) - {"worker"}) <= LOOSE, HOUSE.loose


def test_there_are_few_ways_between_rooms() -> None:
    assert len(HOUSE.arrows) <= ARROWS, HOUSE.arrows
    assert len(HOUSE.levels) <= LEVELS, HOUSE.levels


def test_a_class_name_stands_for_one_thing() -> None:
    assert HOUSE.classes == {}


def test_a_circle_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "made"
    for name, content in {
        "__init__.py": "",
        "one/__init__.py": "",
        "one/a.py": "from made.two import b",
        "two/__init__.py": "",
        "two/b.py": "def late():\n    from made.one.a import late\nclass Same: ...",
        "three.py": "class Same: ...",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    found = measure(package)
    assert found.circles == (("made.one.a", "made.two.b"),)
    assert found.room_circles == (("one", "two"),)
    assert found.loose == ("three",)
    assert found.classes == {"Same": ("made.three", "made.two.b")}


def test_the_version_is_stated_once() -> None:
    stated = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["version"]
    assert harness.__version__ == __version__ == stated
    assert Path(harness.__file__).resolve().parent == PACKAGE
