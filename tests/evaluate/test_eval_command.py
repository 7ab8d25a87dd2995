"""`harness eval` and `harness references` as a person meets them: bad input is one sentence each."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.measure import asked, measure, named
from harness.errors import DataError, SpecError
from harness.project import Project
from harness.settings import Settings
from harness.spec.evaluation import Evaluation
from harness.store import Store


def project(root: Path) -> Project:
    return Project(Settings(store=root / "store", evaluation_root=root / "sets"), Store(root / "store"))


def test_checkpoints_go_by_their_names() -> None:
    assert named(["runs/a.pt", "mine=runs/b.pt"]) == {"a.pt": "runs/a.pt", "mine": "runs/b.pt"}


def test_two_checkpoints_under_one_name() -> None:
    with pytest.raises(SpecError, match="two checkpoints are called"):
        named(["first/a.pt", "second/a.pt"])
    assert len(named(["first/a.pt", "second=second/a.pt"])) == 2


@pytest.mark.parametrize(
    ("suites", "protocols", "sentence"),
    [
        (["fff11"], ["slap"], "slip"),
        (["pets@slap"], [], 'no protocol is called "slap"'),
        (["a/pets", "b/pets"], [], 'two evaluation sets are called "pets"'),
    ],
)
def test_what_cannot_be_asked_for(suites: list[str], protocols: list[str], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        asked(suites, protocols)


def test_a_suite_of_which_nothing_is_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no set of fff11 is on this machine"):
        measure(project(tmp_path), ["weights.pt"], Evaluation(sets=("fff11",)), "ViT-B-32", None)


def test_a_weights_file_without_its_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    with pytest.raises(SpecError, match="does not name its model"):
        measure(project(tmp_path), [str(file)], Evaluation(sets=("./somewhere",)), None, None)
