"""`harness status --watch` ends when nothing is left to wait for, and `harness plan` says of an arm what differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli import output, status
from harness.execute.life import Life
from harness.execute.status import RunStatus
from harness.planning.plan import Arm
from harness.runs.store import Store
from tests.reporting.made import quickstart, simple


class EndlessError(Exception):
    """It would have waited."""


def refreshes(monkeypatch: pytest.MonkeyPatch, lives: Iterator[Life], commands: Iterator[bool], root: Path) -> int:
    """How often the status is shown, of a run with these states while a command runs or not."""
    plan, _ = simple(root, {"a": [0.5]})
    shown = []

    def states(*_: Any) -> list[RunStatus]:
        shown.append(run := object.__new__(RunStatus))
        object.__setattr__(run, "life", next(lives))
        return [run]

    def wait(_: float) -> None:
        if len(shown) == 5:
            raise EndlessError

    monkeypatch.setattr(status, "status", states)
    monkeypatch.setattr("harness.cli.status.time.sleep", wait)
    status.watch(lambda: plan, Store(root), lambda: next(commands))
    return len(shown)


@pytest.mark.parametrize("life", [Life.CANCELLED, Life.INTERRUPTED, Life.FAILED, Life.DONE, Life.MISSING, Life.TRAINED])
def test_it_ends_if_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, life: Life) -> None:
    assert refreshes(monkeypatch, iter([life] * 5), iter([False] * 5), tmp_path) == 1


@pytest.mark.parametrize("life", [Life.RUNNING, Life.PENDING, Life.EVALUATING, Life.LEAVING])
def test_it_waits_for_jobs_and_for_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, life: Life) -> None:
    ended = [life, life, Life.CANCELLED]
    assert refreshes(monkeypatch, iter(ended), iter([False] * 5), tmp_path / "jobs") == 3
    assert refreshes(monkeypatch, iter([Life.MISSING] * 5), iter([True, True, False]), tmp_path / "command") == 3
    with pytest.raises(EndlessError):
        refreshes(monkeypatch, iter([life] * 9), iter([False] * 9), tmp_path / "endless")


def test_a_plan_says_what_an_arm_changes_and_no_more(tmp_path: Path) -> None:
    plan, _ = quickstart(tmp_path)
    config = {f"model.config.{name}": 64 for name in ("embed_dim", "width", "layers", "heads", "patch", "vocab")}
    changes = {"loss.kind": "infonce", "captions.source": "x" * 90, **config}
    base = {"loss.kind": "infonce", "captions.source": "captioner", "model.config.embed_dim": 64}
    said = output._changes(Arm("a", "a", plan.arms[0].experiment, changes), base)
    widths = "model.config.width=64, model.config.layers=64, model.config.heads=64"
    assert said == f"captions.source={'x' * 40}..., {widths} and 2 more"
    assert output._changes(Arm("a", "a", plan.arms[0].experiment, {"loss.kind": "infonce"}), base) == "nothing"
