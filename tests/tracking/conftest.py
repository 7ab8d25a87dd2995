from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.plan import Plan
from harness.store import Store
from harness.tracking import prepare
from tests.tracking.world import content, finish_all, plan_of, sqlite_uri


@dataclass(frozen=True)
class Place:
    """A store, an SQLite database without any experiment, and a plan."""

    root: Path
    plan: Plan

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def uri(self) -> str:
        return sqlite_uri(self.root)

    def content(self) -> dict[str, Any]:
        return content(self.database)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once by the function under test: it takes seconds."""
    root = tmp_path_factory.mktemp("empty")
    prepare(sqlite_uri(root), Store(root))
    return root / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, empty_database: Path) -> Place:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Place(tmp_path, plan_of())


@pytest.fixture
def finished(place: Place) -> Place:
    finish_all(place.plan, place.store)
    return place


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Place:
    """A second place, to be filled in one go and compared with."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_database, root / "mlflow.db")
    return Place(root, plan_of())
