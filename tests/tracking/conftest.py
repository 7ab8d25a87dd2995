from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.planning.plan import Plan
from harness.runs.store import Store
from harness.tracking import sync
from harness.tracking.client import create_database, mlflow_session
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
    with mlflow_session(sqlite_uri(root)):
        create_database(root / "mlflow.db")
    return root / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, empty_database: Path) -> Place:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Place(tmp_path, plan_of())


@pytest.fixture
def finished(place: Place) -> Place:
    finish_all(place.plan, place.store)
    return place


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[str, Any]:
    """What the database holds when the finished plan was imported in one go."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_database, root / "mlflow.db")
    place = Place(root, plan_of())
    finish_all(place.plan, place.store)
    sync(place.plan, place.store, place.uri)
    return place.content()
