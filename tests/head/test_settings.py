"""harness.toml and the variables that replace its keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import SpecError
from harness.runs.settings import Settings, load_settings, store_note
from tests.head.made import is_one_sentence


def load(folder: Path, text: str | None = None, **variables: str) -> Settings:
    if text is not None:
        (folder / "harness.toml").write_text(text)
    return load_settings(folder, variables)


def test_without_a_file_everything_lies_in_the_folder(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings == Settings(store=tmp_path / "store")
    assert settings.tracking == f"sqlite:///{tmp_path}/store/mlflow.db"


def test_the_nearest_file_above_decides_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "harness.toml").write_text('store = "far"')
    (tmp_path / "a" / "harness.toml").write_text('store = "runs"\nevaluation_root = "../sets"\njobs = 3')
    settings = load(below)
    assert (settings.store, settings.jobs) == (tmp_path / "a" / "runs", 3)
    assert settings.evaluation_root is not None
    assert settings.evaluation_root.resolve() == tmp_path / "sets"


def test_variables_replace_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = 'store = "a"\njobs = 3\nprofile = "inline"'
    settings = load(tmp_path, text, HARNESS_STORE="b", HARNESS_JOBS="5", HARNESS_PROFILE="", HARNESS_OTHER="x")
    assert (settings.store, settings.jobs, settings.profile) == (elsewhere / "b", 5, "inline")


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert load(tmp_path, 'store = "~/runs"').store == tmp_path / "me" / "runs"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("none", None), ("http://host:5000", "http://host:5000"), ("sqlite:////x.db", "sqlite:////x.db")],
)
def test_tracking(tmp_path: Path, uri: str, expected: str | None) -> None:
    assert load(tmp_path, f'tracking_uri = "{uri}"').tracking == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('stroe = "x"', "harness.toml: stroe: unknown key; did you mean 'store'?"),
        ("jobs = -1", "harness.toml: jobs: should be greater than or equal to 0, not -1"),
        ('jobs = "many"', "harness.toml: jobs: should be a whole number, not 'many'"),
        ("store = 3", "harness.toml: store: should be a path in quotes, not 3"),
        ("profile = 1\njobs = 0.5", "harness.toml: profile: should be text in quotes, not 1 (and 1 more)"),
        ("store = ", "harness.toml: is not valid TOML (Invalid value (at end of document)); correct that line"),
        ("[jobs]\nn = 3", "harness.toml: jobs: should be a whole number, not a table"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert str(caught.value) == f"{tmp_path}/{expected}"
    assert is_one_sentence(caught.value)


def test_bad_variable_is_named_itself(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "jobs = 3", HARNESS_JOBS="many")
    assert str(caught.value) == "environment: HARNESS_JOBS: should be a whole number, not 'many'"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "harness.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="is not valid TOML"):
        load(tmp_path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HARNESS_STORE", raising=False)
    (tmp_path / "project" / "specs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


def test_specs_of_a_git_repository_share_a_store(project: Path) -> None:
    (project / ".git").mkdir()
    assert load(project / "specs").store == load(project).store == project / "store"
    note = store_note(project / "specs")
    assert note == f"there is no harness.toml, so results go to {project}/store; `harness init` writes one"
    (project / "store" / "runs").mkdir(parents=True)
    assert store_note(project / "specs") is None


def test_without_git_specs_below_the_working_folder_share_its_store(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(project / "specs").store == project.parent / "store"
    monkeypatch.chdir(project / "specs")
    assert load(project).store == project / "store"


def test_a_store_beside_a_spec_is_used_and_said(project: Path) -> None:
    (project / ".git").mkdir()
    (project / "specs" / "store").mkdir()
    assert load(project / "specs").store == project / "store"  # any folder of that name is no store
    (project / "specs" / "store" / "store.json").write_text('{"version": 1}')
    assert load(project / "specs").store == project / "specs" / "store"
    assert "the store beside the spec is used" in (store_note(project / "specs") or "")


def test_a_harness_toml_or_a_variable_needs_no_note(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STORE", str(project / "mine"))
    assert store_note(project / "specs") is None
    monkeypatch.delenv("HARNESS_STORE")
    (project / "harness.toml").write_text("")
    assert store_note(project / "specs") is None
