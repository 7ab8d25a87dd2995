"""The runs of a bundle, trained from nothing: the same digits, and what is told of others."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness import api
from harness.base.errors import StoreError
from harness.runs.store import Store
from tests.test_integrity import Place, trained

assert trained  # the fixture

again, tables = import_module("benchmarks.results.again"), import_module("benchmarks.results.tables")


@pytest.fixture(scope="module")
def real(trained: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two runs that were trained."""
    plan = trained.plan()
    plan.settings = trained.at.settings
    return api.publish(plan, tmp_path_factory.mktemp("real") / "two").folder


def test_runs_are_trained_from_nothing_to_the_same_digits(real: Path) -> None:
    assert again.train(real, on="inline") == []


def test_some_seeds_can_be_trained_alone(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again.train(real, on="inline", seeds=[0]) == []
    assert "all 2 runs have the same digits" in capsys.readouterr().out
    with pytest.raises(StoreError, match="has no run of seeds"):
        again.train(real, on="inline", seeds=[1])


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("record.json", lambda table: table["evaluations"][0].update(weights="0" * 64), "weights"),
        ("record.json", lambda table: table["evaluations"][0]["metrics"]["acc1"].update(value=0.5), "metrics"),
        ("record.json", lambda table: table["final"].update(loss=0.5), "last training metrics"),
        ("metrics.jsonl", lambda table: table["values"].update(loss=0.5), "curves"),
    ],
)
def test_other_digits_are_told(real: Path, trained: Place, tmp_path: Path, file: str, change: Any, told: str) -> None:
    store = Store(tmp_path / "store")
    for run in trained.plan().cells.values():
        shutil.copytree(trained.at.store.run(run).path, store.run(run).path)
    bundle = tables.Shown(real, "").bundle
    assert list(again.differing(bundle, store, bundle.about.runs)) == []
    folder = store.run(trained.plan().cells["a", 0])
    lines = [json.loads(line) for line in (folder.path / file).read_text().splitlines()] if file[0] == "m" else []
    table = lines[0] if lines else json.loads((folder.path / file).read_text())
    change(table)
    table.pop("seal", None)
    content = "".join(json.dumps(line) + "\n" for line in lines) if lines else json.dumps(table)
    (folder.path / file).write_text(content)
    (problem,) = again.differing(bundle, store, bundle.about.runs)
    assert problem == f"bundle two: run {folder.id}, trained again, has other {told}"


def test_a_run_that_was_not_trained_is_told(real: Path, tmp_path: Path) -> None:
    bundle = tables.Shown(real, "").bundle
    problems = list(again.differing(bundle, Store(tmp_path / "store"), bundle.about.runs))
    assert len(problems) == 2
    assert all(problem.endswith("was not trained again") for problem in problems)
