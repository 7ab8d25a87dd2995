"""harness.toml and the variables that replace its keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import SpecError
from harness.runs.settings import Settings, load_settings
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
