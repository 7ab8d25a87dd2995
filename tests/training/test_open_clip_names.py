"""Every name of open_clip can be trained, or the table of `python -m benchmarks.models` says what it lacks."""

from __future__ import annotations

from importlib import import_module

import open_clip
import pytest

table = import_module("benchmarks.models")
LACKS = ("", "its tokenizer", "its text tower's configuration")
FAST = ("PE-Core-T-16-384",)
"""A step of these takes seconds. Its attention pool is what could not be counted."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the command, where nothing was imported before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def is_told(name: str) -> bool:
    """A name either builds, or says what is not on this machine."""
    builds, lacks = table.built(name)
    return (builds == "yes" and lacks in LACKS) or (builds == "with it" and lacks == LACKS[-1])


@pytest.mark.parametrize("name", table.FAMILIES)
def test_one_of_each_family_builds(name: str) -> None:
    assert is_told(name)


@pytest.mark.slow
def test_every_name_builds() -> None:
    names = open_clip.list_models()
    assert set(table.FAMILIES) < set(names)
    assert [name for name in names if not is_told(name)] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in table.FAMILIES]
)
def test_one_of_each_family_takes_a_step(name: str) -> None:
    """Its operations are counted too, which killed the runs of attention pools."""
    said = table.stepped_apart(name)
    assert said.startswith(f"{table.FAMILIES[name]}: loss "), said
    assert "not counted" not in said
    assert "nan" not in said


def test_a_model_that_cannot_be_built_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("ModuleTracker")

    monkeypatch.setattr(table, "build_towers", broken)
    monkeypatch.setattr("sys.argv", ["models", "--fast", "RN50"])
    assert table.main() == 1
    assert "| RN50 | no | AssertionError: ModuleTracker |" in capsys.readouterr().out
