"""The copy of the code that jobs run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.execute.slurm.snapshot import snapshot


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout of its own."""
    folder = tmp_path / "checkout" / "harness"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("WORD = 'first'\n")
    (folder / "table.json").write_text("{}")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *command], cwd=folder.parent, check=True)
    return folder


def imported(root: Path) -> str:
    command = [sys.executable, "-c", "import harness; print(harness.WORD)"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_editing_the_checkout_changes_nothing_that_is_queued(package: Path, tmp_path: Path) -> None:
    clean = snapshot(tmp_path / "code", package)
    assert snapshot(tmp_path / "code", package) == clean
    origin = json.loads((clean / "code.json").read_text())
    assert (origin["diff"], origin["untracked"]) == ("", "")
    assert not origin["commit"].endswith("-dirty")
    (package / "__init__.py").write_text("WORD = 'second'\n")
    (package / "new.py").touch()
    dirty = snapshot(tmp_path / "code", package)
    assert dirty != clean
    assert (imported(clean), imported(dirty)) == ("first", "second")
    origin = json.loads((dirty / "code.json").read_text())
    assert origin["commit"].endswith("-dirty")
    assert "+WORD = 'second'" in origin["diff"]
    assert origin["untracked"].split() == ["new.py"]
    assert (clean / "harness" / "table.json").exists()


def test_equal_code_shares_one_copy(package: Path, tmp_path: Path) -> None:
    first = snapshot(tmp_path / "code", package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").touch()
    (package / "__init__.py").touch()
    assert snapshot(tmp_path / "code", package) == first
    assert [path.name for path in (tmp_path / "code").iterdir()] == [first.name]
