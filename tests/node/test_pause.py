"""A run that is asked to pause leaves a checkpoint at that very step, and goes on to the same result."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import worker
from harness.base.errors import StoreError
from harness.runs.folder import RunFolder, State
from tests.node.small import STEPS, experiment, planned, prepared

EVALUATED = {"evaluation": {"sets": ["shapes"], "every": "2 steps"}}


def curve(folder: RunFolder) -> dict[int, float]:
    return {line.step: line.values["shapes/acc1"] for line in folder.step_metrics() if "shapes/acc1" in line.values}


def test_paused_and_gone_on_equals_never_paused(tmp_path: Path) -> None:
    _, run = planned(tmp_path / "straight", experiment(**EVALUATED))
    straight = prepared(tmp_path / "straight", run)
    assert worker.main(straight.path) == worker.DONE

    _, run = planned(tmp_path / "paused", experiment(**EVALUATED))
    folder = prepared(tmp_path / "paused", run)
    folder.pause_at(2)
    assert worker.main(folder.path) == worker.DONE
    assert folder.is_paused()
    assert folder.state() is State.INTERRUPTED
    assert folder.read_progress()["step"] == 2
    assert list(curve(folder)) == [2]

    folder = prepared(tmp_path / "paused", run)  # preparing it again lifts the pause
    assert not folder.is_paused()
    assert worker.main(folder.path) == worker.DONE
    assert folder.record().evaluations == straight.record().evaluations
    assert curve(folder) == curve(straight)
    assert folder.record().steps == STEPS


def test_a_pause_behind_a_run_stops_it_at_its_next_look(tmp_path: Path) -> None:
    _, run = planned(tmp_path, experiment(**EVALUATED))
    folder = prepared(tmp_path, run)
    folder.pause_at(2)
    worker.main(folder.path)
    folder.pause_at(1)
    assert folder.is_paused()


def test_a_damaged_pause_is_one_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.pause.write_text("[]")
    with pytest.raises(StoreError, match="is damaged; move its folder"):
        folder.pause_step()
    folder.pause.write_text('{"step": null}')
    with pytest.raises(StoreError, match="is damaged; delete it"):
        folder.pause_step()
