"""`harness eval` and `harness references` as a person meets them: bad input is one sentence each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.base.errors import DataError, SpecError
from harness.base.files import read_json
from harness.cli.evaluate import measure
from harness.execute.evaluate import evaluation_of as asked
from harness.execute.evaluate import named
from harness.models import build_towers
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store
from harness.training.checkpoint import save_weights
from tests.evaluation.worlds import classification_files, retrieval_set, write_set
from tests.node import small
from tests.node.small import experiment, planned, prepared


def project(root: Path) -> Project:
    return Project(Settings(store=root / "store", evaluation_root=root / "sets"), Store(root / "store"))


def test_checkpoints_go_by_their_names() -> None:
    assert named(["runs/a.pt", "mine=runs/b.pt"]) == {"a.pt": "runs/a.pt", "mine": "runs/b.pt"}


def test_two_checkpoints_under_one_name() -> None:
    with pytest.raises(SpecError, match="two checkpoints are called"):
        named(["first/a.pt", "second/a.pt"])
    assert len(named(["first/a.pt", "second=second/a.pt"])) == 2
    assert named(["fff/0", "raw/0"]).keys() == {"fff/0", "raw/0"}


@pytest.mark.parametrize(
    ("suites", "protocols", "sentence"),
    [
        (["fff11"], ["slap"], "slip"),
        (["pets@slap"], [], 'there is no protocol "slap"'),
        (["a/pets", "b/pets"], [], 'two evaluation sets are called "pets"'),
    ],
)
def test_what_cannot_be_asked_for(suites: list[str], protocols: list[str], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        asked(suites, protocols)


def test_a_spec_says_what_to_measure_and_how(tmp_path: Path) -> None:
    file = tmp_path / "measured.toml"
    file.write_text('[evaluation]\nsets = ["pets"]\nprecision = "bfloat16"\nprotocols = ["slip"]')
    found = asked(["cars", "pets"], ["slip", "alip"], file)
    assert (found.sets, found.protocols, found.precision) == (("pets", "cars"), ("slip", "alip"), "bfloat16")
    file.write_text('[evaluation]\nprecision = "bfloat16"')
    with pytest.raises(SpecError, match=r"measured\.toml.*: no evaluation set is named; add --suite"):
        asked([], [], file)
    with pytest.raises(SpecError, match="no evaluation set is named"):
        asked([], [])


def test_a_suite_of_which_nothing_is_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no set of fff11 is on this machine"):
        measure(project(tmp_path), ["weights.pt"], ["fff11"], [], "ViT-B-32", None)


def test_a_weights_file_without_its_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    with pytest.raises(SpecError, match="does not name its model"):
        measure(project(tmp_path), [str(file)], ["./somewhere"], [], None, None)


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process and in those that it starts: features depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_processes_measure_together(tmp_path: Path) -> None:
    one = experiment(resources={"device": "cpu"})
    _, run = planned(tmp_path, one)
    folder = prepared(tmp_path, run)
    save_weights(folder.weights, build_towers(one.model, seed=0).model)
    pictures = retrieval_set(tmp_path / "pictures", images=300)  # two batches
    here = small.project(tmp_path)
    for processes in (2, 1):
        measure(here, [run.id], [str(pictures)], [], None, tmp_path / f"{processes}.json", processes)
        shutil.rmtree(here.store.evaluation_features)
    together, alone = (read_json(tmp_path / f"{processes}.json") for processes in (2, 1))
    assert together == alone
    assert len(together[run.id]) == 1

    members = [("s0.png", b"no image"), ("s0.cls", b"0")]
    spoilt = write_set(tmp_path / "spoilt", [members], classification_files(2))
    with pytest.raises(DataError, match='the image of sample "s0" cannot be decoded'):
        measure(here, [run.id], [str(spoilt)], [], None, None, 2)
