"""Published ablations: what a bundle holds, that it verifies elsewhere, and that no change of it passes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import api
from harness.base.errors import SpecError, StoreError
from harness.cli import verbs
from harness.config.ablation import Ablation
from harness.config.overrides import expand
from harness.execute.bundle import SUMS, Replacer, sums
from harness.execute.publish import Published
from harness.planning.claims import note_claims
from harness.planning.plan import Plan
from harness.runs.identity import digest
from harness.runs.integrity import file_digest, record_digest
from tests.head.made import is_one_sentence, write
from tests.head.own_parts import METRIC
from tests.node.small import experiment
from tests.test_integrity import ARMS, TRAIN, Place, edited, trained

assert trained  # the fixture

CLAIM = {"text": "a low rate helps", "arm": "b", "than": "a", "factor": "train.optimiser.lr"}


def published(place: Place, folder: Path, **options: Any) -> Published:
    return api.publish(plan(place), folder, **options)


def plan(place: Place, **changes: Any) -> Plan:
    one = experiment(teacher=None, train=TRAIN)
    arms = dict(sorted(ARMS.items(), reverse=True))  # as declared, and not by name
    table = {"question": "?", "baseline": "a", "arms": arms, "seeds": 1, "primary": "shapes/acc1", "claims": [CLAIM]}
    made = place.at.plan(Ablation.model_validate({**table, "experiment": one, **changes}), name="two")
    made.settings = place.at.settings
    return made


@pytest.fixture(scope="module")
def bundle(trained: Place, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published(trained, tmp_path_factory.mktemp("published") / "bundle")


@pytest.fixture
def copy(bundle: Published, tmp_path: Path) -> Path:
    shutil.copytree(bundle.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_bundle_verifies_in_another_place_and_every_number_is_made_again(bundle: Published, copy: Path) -> None:
    found = api.verify(copy, root=bundle.root)
    assert found.problems == []
    assert (found.runs, found.root) == (2, bundle.root)
    assert found.metrics > 10
    assert found.report > 50
    assert [one for one in found.unproven if "weights.pt" in one]


def test_the_command_verifies_it_in_another_folder_without_the_store(bundle: Published, copy: Path) -> None:
    command = [sys.executable, "-m", "harness", "verify", str(copy), "--root", bundle.root]
    environment = {"PATH": os.environ["PATH"], "HOME": str(copy.parent), "LOGNAME": "somebody"}
    done = subprocess.run(command, cwd=copy.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"root hash {bundle.root}" in done.stdout


def test_sha256sum_checks_it_too(copy: Path, bundle: Published) -> None:
    assert subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=copy, check=False).returncode == 0
    told = subprocess.run(["sha256sum", SUMS], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert told.split()[0] == bundle.root


def test_it_holds_code_lock_file_claims_records_outcomes_and_report_and_no_weights(copy: Path) -> None:
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert {"code/harness/api.py", "code/requirements.lock", "claims.json", "report/report.md"} <= names
    assert {Path(name).name for name in names if name.startswith("store/runs")} >= {"spec.json", "record.json"}
    assert any(name.endswith(".parquet") for name in names)
    rest = {name for name in names if not name.startswith("code/")}
    assert not [name for name in rest if name.endswith((".pt", ".png", ".html", "log.txt", "lock"))]
    assert not [name for name in rest if "gallery" in name or "attempts" in name]


def test_weights_come_on_request(trained: Place, tmp_path: Path) -> None:
    made = published(trained, tmp_path / "whole", weights=True, images=True)
    assert len(list(made.folder.rglob("weights.pt"))) == 2
    assert (made.folder / "report/report.html").exists()
    found = api.verify(made.folder, root=made.root)
    assert found.problems == []
    assert not [one for one in found.unproven if "weights.pt" in one]


def _contents(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(f"{file.relative_to(folder)} {file.read_bytes().decode('utf-8', 'replace')}" for file in files)


def test_no_path_host_or_user_is_in_it(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "ada.lovelace"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "ada.lovelace")
    monkeypatch.setattr(socket, "gethostname", lambda: "difference-engine-7")
    note = f"the old set is in {home}/sets/mine, and on ada.lovelace@difference-engine-7:/srv/sets"
    made = plan(place, notes=f"Data: {home}/data/x.tar, https://ada:pw@example.org/x?key=1 and\n/a/b/c.txt, 3/4 of it")
    for arm in ARMS:
        folder = place.folder(arm)
        table = json.loads(folder.record_file.read_text())
        table["data"]["notes"] = [f"{home}/data/x.tar was read"]
        table["seal"]["record"] = record_digest(table)
        folder.record_file.write_text(json.dumps(table))
    done = api.publish(made, tmp_path / "bundle")
    text = _contents(done.folder)
    for name in (str(home), str(Path.cwd()), str(place.root), "ada.lovelace", "difference-engine-7", "ada:pw"):
        assert name not in text, name
    stated = json.loads((done.folder / "ablation.json").read_text())["notes"]
    assert stated == "Data: elsewhere/x.tar, https://example.org/x and\nelsewhere/c.txt, 3/4 of it"
    assert api.verify(done.folder, root=done.root).problems == []
    with pytest.raises(StoreError, match=r"names this machine or its user") as caught:
        api.publish(plan(place, notes=note), tmp_path / "refused")
    assert is_one_sentence(caught.value)
    assert not (tmp_path / "refused").exists()


def test_a_name_in_a_compressed_column_is_found(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of samples may hold a user's name, and Parquet compresses them."""
    monkeypatch.setenv("LOGNAME", "ada.lovelace")
    folder = place.folder("a")
    for file in folder.outcomes.iterdir():
        table = pq.read_table(file)
        keys = pa.array([f"ada.lovelace/{key}" for key in table["key"].to_pylist()])
        changed = table.set_column(table.schema.get_field_index("key"), "key", keys)
        pq.write_table(changed, file, compression="gzip", write_statistics=False)
        assert b"ada.lovelace" not in file.read_bytes()
    record = json.loads(folder.record_file.read_text())
    files = record["seal"]["files"]
    record["seal"]["files"] = {name: file_digest(folder.path / name) for name in files}
    record["seal"]["record"] = record_digest(record)
    folder.record_file.write_text(json.dumps(record))
    with pytest.raises(StoreError, match=r"names this machine or its user: 'ada.lovelace'"):
        published(place, tmp_path / "refused")


@pytest.fixture
def place(trained: Place, tmp_path: Path) -> Place:
    shutil.copytree(trained.root, tmp_path / "store-copy")
    return Place(tmp_path / "store-copy")


def test_a_claim_says_whether_it_was_planned_before_its_runs(place: Place, tmp_path: Path) -> None:
    assert published(place, tmp_path / "one").claims == {"unknown": 1}
    note_claims(plan(place), place.at.store)
    assert published(place, tmp_path / "two").claims == {"after": 1}
    (file,) = (place.at.store.root / "claims").iterdir()
    edited(file, lambda table: table.update(planned_at=1.0))
    note_claims(plan(place, seeds=2), place.at.store)  # the first time counts
    made = published(place, tmp_path / "three")
    assert made.claims == {"before": 1}
    (claim,) = json.loads((made.folder / "claims.json").read_text())
    assert (claim["planned_at"], claim["seeds"], len(claim["runs"])) == (1.0, [0], 2)
    assert api.verify(made.folder).problems == []


def test_an_arm_that_changed_makes_another_claim(place: Place) -> None:
    note_claims(plan(place), place.at.store)
    note_claims(plan(place, arms={"a": {}, "b": expand({"train.optimiser.lr": 2e-3})}), place.at.store)
    assert len(list((place.at.store.root / "claims").iterdir())) == 2


@pytest.mark.parametrize("changes", [{"margin": "1 point"}, {"estimation": "paired"}])
def test_a_margin_or_an_estimation_that_is_chosen_after_the_runs_makes_another_claim(
    place: Place, tmp_path: Path, changes: dict[str, Any]
) -> None:
    note_claims(plan(place), place.at.store)
    (file,) = (place.at.store.root / "claims").iterdir()
    edited(file, lambda table: table.update(planned_at=1.0))
    other = plan(place, **changes)
    note_claims(other, place.at.store)
    assert api.publish(other, tmp_path / "other").claims == {"after": 1}
    assert published(place, tmp_path / "same").claims == {"before": 1}


def test_a_claim_that_an_earlier_version_noted_keeps_its_time(place: Place, tmp_path: Path) -> None:
    planned = plan(place)
    (claim,) = planned.ablation.claims
    sciences = [planned.experiments[arm].science() for arm in (claim.arm, claim.than)]
    arms = [{name: part for name, part in one.items() if name != "seed"} for one in sciences]
    folder = place.at.store.root / "claims"
    folder.mkdir()
    earlier = folder / f"{digest([claim.model_dump(mode='json'), 'shapes/acc1', arms])}.json"
    earlier.write_text('{"planned_at": 1.0, "seeds": [0]}')
    note_claims(planned, place.at.store)
    assert list(folder.iterdir()) == [earlier]
    assert published(place, tmp_path / "bundle").claims == {"before": 1}


def test_what_cannot_be_published_is_said(place: Place, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="exists already"):
        published(place, tmp_path)
    with pytest.raises(StoreError, match="none of its 2 runs has finished"):
        api.publish(plan(place, experiment=experiment(teacher=None)), tmp_path / "new")
    folder = place.folder("a")
    folder.metrics.write_text("")
    with pytest.raises(StoreError, match="was changed since the run ended"):
        published(place, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(SpecError, match="only a published folder"):
        api.verify(plan(place), root="0" * 64)
    with pytest.raises(StoreError, match="SHA256SUMS"):
        api.verify(tmp_path)


def test_a_bundle_made_anew_is_found_by_its_root(bundle: Published, copy: Path) -> None:
    shutil.rmtree(next((copy / "store/runs").iterdir()))
    assert [one for one in api.verify(copy).problems if "is missing" in one]
    (copy / SUMS).write_text(sums(copy))
    assert [one for one in api.verify(copy, root=bundle.root).problems if "root hash" in one]


def test_a_dropped_run_is_found_even_without_the_sums(copy: Path) -> None:
    run = next((copy / "store/runs").iterdir())
    shutil.rmtree(run)
    (copy / SUMS).write_text(sums(copy))
    assert f"run {run.name} is missing" in api.verify(copy).problems


def test_a_link_is_not_followed(copy: Path) -> None:
    (copy / "claims.json").unlink()
    (copy / "claims.json").symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="neither a file nor a folder"):
        api.verify(copy)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/cc3m/{0000..0331}.tar", "elsewhere/{0000..0331}.tar"),
        ("/a/x.tar::/b/x.tar", "elsewhere/x.tar::elsewhere/2/x.tar"),
        ("~/sets/mine", "elsewhere/mine"),
        ("see /a/b/c.", "see elsewhere/c."),
        ("s3://bucket/x.tar", "elsewhere/x.tar"),
        ("http://gpu7.local:80/x.tar", "elsewhere/x.tar"),
        ("https://me@arxiv.org/abs/1?x=y", "https://arxiv.org/abs/1"),
        ("and/or, 1/2, a / b, km/h", "and/or, 1/2, a / b, km/h"),
        ("image/text of {c}", "image/text of {c}"),
    ],
)
def test_paths_are_replaced_and_nothing_else(text: str, shown: str) -> None:
    replacer = Replacer()
    assert replacer.data({"x": [text]}) == {"x": [shown]}
    assert replacer.text(text) == shown


def test_plan_notes_claims_and_needs_no_store_that_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(tmp_path)
    spec.write_text(spec.read_text() + '\n[[claims]]\ntext = "more is better"\narm = "more"\nthan = "plain"\n')
    monkeypatch.setattr(sys, "argv", ["harness", "plan", str(spec)])
    (tmp_path / "store").write_text("a file")
    for noted in (False, True):
        verbs.plan([spec], [])
        assert ("the time at which" in capsys.readouterr().err) is not noted
        assert (tmp_path / "store/claims").is_dir() is noted
        if not noted:
            (tmp_path / "store").unlink()


def test_parts_of_ones_own_travel_with_the_bundle(trained: Place, tmp_path: Path) -> None:
    own = tmp_path / "own" / "metric.py"
    own.parent.mkdir()
    own.write_text(METRIC)
    part = {"kind": "python", "file": str(own), "name": "ReciprocalRank"}
    evaluation = {"sets": ["shapes"], "metrics": [part]}
    made = plan(trained, experiment=experiment(teacher=None, train=TRAIN, evaluation=evaluation))
    bundle = api.publish(made, tmp_path / "bundle")
    shutil.rmtree(own.parent)
    (kept,) = (bundle.folder / "parts").glob("*/metric.py")
    assert kept.read_text() == METRIC
    assert str(tmp_path) not in (bundle.folder / "ablation.json").read_text()
    moved = bundle.folder.rename(tmp_path / "moved")
    assert api.verify(moved, root=bundle.root).problems == []
    kept = moved / kept.relative_to(bundle.folder)
    kept.write_text(METRIC + "# edited")
    problems = api.verify(moved).problems
    assert f"{kept} was changed" in problems
