"""Versions on disk: the first write states them, and what a newer harness wrote is refused in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.base.errors import StoreError
from harness.base.files import create_text
from harness.config.load import load
from harness.config.profile import Profile
from harness.execute.slurm import node
from harness.execute.slurm.submission_log import Intent, SubmissionLog
from harness.planning.plan import resolve_arms
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder, State
from harness.runs.request import Request, read_request
from harness.runs.settings import Settings
from harness.runs.store import Store
from harness.runs.versions import STORE_VERSION
from harness.searching.folder import SearchFolder
from tests.head.made import ablation, is_one_sentence, plan_of, record, write
from tests.searching.made import search

PLAN = plan_of(ablation({"plain": {}}))
RUN = next(iter(PLAN.runs.values()))
REPOSITORY = Path(__file__).parents[2]
NEWER = json.dumps({"version": STORE_VERSION + 1})
STATED = {"version": STORE_VERSION}
BEGIN = """
import sys, time
from pathlib import Path
from harness.runs.versions import begin_store
while time.time() < float(sys.argv[2]):
    pass
begin_store(Path(sys.argv[1]))
"""


def stated(root: Path) -> Any:
    return json.loads((root / "store.json").read_text())


def request() -> Request:
    return Request.of(RUN.experiment, RUN.id, RUN.teacher, Settings(store=Path("store")), 1)


def prepared(root: Path) -> RunFolder:
    folder = Store(root).run(RUN.id)
    folder.prepare(RUN.identity, request().written() | {"store": str(root)})
    return folder


def refused(look: Callable[[], object], file: Path) -> str:
    with pytest.raises(StoreError) as caught:
        look()
    assert is_one_sentence(caught.value)
    assert str(caught.value).startswith(f"{file}: was written by a newer harness (")
    assert str(caught.value).endswith("); use the harness that wrote it, or update this one")
    return caught.value.what


def test_a_command_that_conducts_runs_states_the_version(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "store")
    with store.registered("ablation"):
        assert stated(store.root) == STATED
    assert oct((store.root / "store.json").stat().st_mode)[-3:] == "644"
    assert not [file for file in os.listdir(store.root) if file.startswith(".")]
    store.check()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    project = Project(Settings(store=tmp_path / "store"), Store(tmp_path / "store"))
    project.plan(write(tmp_path))
    project.store.check()
    assert not project.store.root.exists()


def test_commands_that_begin_a_store_at_once(tmp_path: Path) -> None:
    import time

    start = str(time.time() + 2)
    command = [sys.executable, "-c", BEGIN, str(tmp_path / "store"), start]
    others = [subprocess.Popen(command) for _ in range(6)]
    assert [other.wait(timeout=60) for other in others] == [0] * 6
    assert os.listdir(tmp_path / "store") == ["store.json"]
    assert stated(tmp_path / "store") == STATED


def test_the_version_of_a_store_is_never_replaced(tmp_path: Path) -> None:
    assert create_text(tmp_path / "store.json", NEWER)
    assert not create_text(tmp_path / "store.json", "{}")
    with pytest.raises(StoreError):
        Store(tmp_path).begin()
    assert (tmp_path / "store.json").read_text() == NEWER
    assert os.listdir(tmp_path) == ["store.json"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    Store(tmp_path / "store").begin()
    assert stated(tmp_path / "store") == STATED
    assert os.listdir(tmp_path / "store") == ["store.json"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A store of before that this process cannot write to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a file system")
    try:
        prepared(disk)
        (disk / "data").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_store_of_before_that_cannot_be_written(read_only: Path, tmp_path: Path) -> None:
    spec = write(tmp_path)
    store = Store(read_only)
    store.check()
    store.begin()
    assert not (read_only / "store.json").exists()
    plan = Project(Settings(store=read_only), store).plan(spec)
    assert set(store.states(plan.runs).values()) == {State.MISSING}
    assert store.run(RUN.id).resolved() == json.loads(json.dumps(RUN.identity.resolved))
    with pytest.raises(StoreError, match="cannot be written"), store.registered("ablation"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"version": "1"}', '{"version": 0}', '{"version": true}'])
def test_a_damaged_version_is_not_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.json").write_text(text)
    for look in (Store(tmp_path).check, Store(tmp_path).begin):
        with pytest.raises(StoreError) as caught:
            look()
        assert is_one_sentence(caught.value)
        assert str(caught.value).startswith(f"{tmp_path / 'store.json'}: ")
    assert (tmp_path / "store.json").read_text() == text


def test_a_newer_store_is_refused_by_head_and_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared(tmp_path)
    submission = submitted(tmp_path)
    (tmp_path / "store.json").write_text(NEWER)
    what = refused(Store(tmp_path).check, tmp_path / "store.json")
    assert what == "was written by a newer harness (version 2; this harness reads up to version 1)"
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path))
    refused(Project.at, tmp_path / "store.json")
    assert node.main(submission) == node.UNSEEN
    assert worker.main(folder.path) == worker.USER_ERROR
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert said.count("was written by a newer harness (version 2;") >= 1
    assert "newer harness" in folder.failure().message


def submitted(root: Path) -> Path:
    profile = Profile()
    intent = Intent.of("made", "run", [[RUN.id]], resources=profile.resources, profile=profile, store=root, code=root)
    return SubmissionLog(Store(root)).add(intent).folder


def with_field(file: Path, *path: str) -> None:
    """Put a field into a JSON file that this harness does not know."""
    whole = json.loads(file.read_text())
    table = whole
    for name in path:
        table = table[name]
    table["new_field"] = 1
    file.write_text(json.dumps(whole))


def test_newer_files_in_a_run_folder(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    with_field(folder.request, "experiment")
    assert "unknown field experiment.new_field" in refused(lambda: read_request(folder), folder.request)

    folder.finish(record(RUN.id))
    with_field(folder.record_file)
    assert "unknown field new_field" in refused(folder.record, folder.record_file)
    folder.record_file.write_text(json.dumps({"version": 1000}))
    assert "version 1000;" in refused(folder.record, folder.record_file)

    folder.spec.write_text(json.dumps(json.loads(folder.spec.read_text()) | {"version": 2}))
    for look in (folder.resolved, lambda: folder.check(RUN.identity), lambda: folder.prepare(RUN.identity, {})):
        assert "version 2;" in refused(look, folder.spec)


def test_a_newer_submission(tmp_path: Path) -> None:
    submission = submitted(tmp_path)
    with_field(submission / "intent.json", "profile")
    what = refused(SubmissionLog(Store(tmp_path)).open, submission / "intent.json")
    assert "unknown field profile.new_field" in what


def test_requests_are_read_as_they_were_written() -> None:
    specs = sorted([*REPOSITORY.glob("experiments/*.toml"), *REPOSITORY.glob("ablations/*.toml")])
    assert len(specs) > 10
    for spec in specs:
        for arm in resolve_arms(load(spec), str(spec)):
            asked = request().model_copy(
                update={"experiment": arm.experiment, "threads": 3, "gpu": 1, "phase": "train"}
            )
            assert Request.model_validate(json.loads(json.dumps(asked.written()))) == asked


def test_a_request_leaves_defaults_out() -> None:
    written = request().written()
    assert "phase" not in written
    assert len(json.dumps(written)) < len(json.dumps(request().model_dump(mode="json"))) / 2


def test_a_search_goes_on_when_the_code_has_a_new_field(tmp_path: Path) -> None:
    folder, one = SearchFolder(tmp_path, "search"), search()
    with folder.held(one):
        pass
    frozen = json.loads(folder.spec.read_text())
    del frozen["experiment"]["train"]["optimiser"]["eps"]
    folder.spec.write_text(json.dumps(frozen))
    folder.check(one)
    frozen["experiment"]["train"]["optimiser"]["eps"] = 0.5
    folder.spec.write_text(json.dumps(frozen))
    with pytest.raises(StoreError, match=r"another search has this name: experiment.train.optimiser.eps was 0.5 "):
        folder.check(one)
