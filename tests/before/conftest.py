"""One old store for all tests here, also where several processes of pytest-xdist share them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.before.old import JOBS, Harness, installed, unpack


def once(root: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `root`/`name`, filled by the first process that needs it; the others wait."""
    root.mkdir(parents=True, exist_ok=True)
    folder, made = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "before"


@pytest.fixture(scope="session")
def old(root: Path) -> Harness:
    """The old code."""
    return Harness(once(root, "old", unpack))


@pytest.fixture(scope="session")
def current() -> Harness:
    """The current code."""
    return installed()


@pytest.fixture(scope="session")
def done(root: Path, old: Harness) -> Path:
    """A store in which the old code has carried out the ablation. Do not change it."""
    return once(root, "done", lambda store: old.command(store, "run", "ablation.toml", "--jobs", JOBS))


@pytest.fixture(scope="session")
def synced(root: Path, old: Harness, done: Path) -> Path:
    """The same store, imported by the old code into the MLflow database inside it. Do not change it."""

    def carry_out(store: Path) -> None:
        shutil.copytree(done, store, dirs_exist_ok=True, symlinks=True)
        old.command(store, "sync", "ablation.toml", tracking="")

    return once(root, "synced", carry_out)
