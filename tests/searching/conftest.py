"""A project with the small world, for each test of searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.planning.workspace import Project
from tests.searching.made import here


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, generated once; each search has a store of its own beside it."""
    root = tmp_path_factory.mktemp("search")
    here(root)
    return root


@pytest.fixture
def at(world: Path, tmp_path: Path) -> Project:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data").symlink_to(world / "store" / "data")
    return here(tmp_path)
