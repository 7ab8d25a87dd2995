"""Files that are damaged while a run is trained: the run ends as if they were not, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import worker
from harness.node.attempt import AttemptRunner, load_request
from harness.runs.folder import RunFolder
from tests.node.small import STEPS, TIMINGS, experiment, planned, prepared
from tests.node.test_resume import StopAfter

FIELDS: dict[str, Any] = {
    "teacher": None,
    "evaluation": {"sets": ["shapes"], "every": "3 steps"},
    "resources": {"log_every": 1, "keep_checkpoints": 3, "checkpoint_every_steps": 2},
}


def result(folder: RunFolder) -> dict[str, Any]:
    record = folder.record()
    lines = [(one.step, untimed(one.values)) for one in folder.step_metrics()]
    state = torch.load(folder.weights, weights_only=True)["state_dict"]
    return {
        "lines": lines,
        "amounts": (record.steps, record.samples_seen, record.epochs),
        "final": untimed(record.final),
        "evaluations": record.evaluations,
        "weights": {name: tensor.tolist() for name, tensor in state.items()},
    }


def untimed(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in TIMINGS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run leaves when nothing is damaged."""
    root = tmp_path_factory.mktemp("whole")
    folder = prepared(root, planned(root, experiment(**FIELDS))[1])
    assert worker.main(folder.path) == worker.DONE
    found = result(folder)
    assert len(found["lines"]) == found["amounts"][0] == STEPS
    assert found["final"] == found["lines"][-1][1]
    return found


def begun(root: Path, steps: int, **fields: Any) -> RunFolder:
    """The run, stopped after `steps`; trained and not evaluated if it has no more."""
    folder = prepared(root, planned(root, experiment(**{**FIELDS, **fields}))[1])
    with folder.claimed():
        attempt = AttemptRunner(folder, load_request(folder), 1, StopAfter(steps))
        assert attempt.train() is (steps >= STEPS)
    return folder


def flipped(file: Path) -> None:
    """One bit of the tensors differs."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


LOGS: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "a garbled line": lambda file: file.write_bytes(file.read_bytes().replace(b"{", b"\xff", 1)),
    "an edited value": lambda file: file.write_text(file.read_text().replace('"loss":', '"loss":1', 1)),
    "lines of another run": lambda file: file.write_text('{"step": 2, "time": 0, "values": {"loss": 9}}\n' * 3),
}


@pytest.mark.parametrize(
    "steps",
    [pytest.param(5, id="while it trains"), pytest.param(STEPS, id="before it is evaluated", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", LOGS)
def test_metrics_that_were_damaged_are_restored(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str, steps: int
) -> None:
    folder = begun(tmp_path, steps)
    LOGS[name](folder.metrics)
    assert worker.main(folder.path) == worker.DONE
    assert result(folder) == whole
    assert f"{folder.metrics} was damaged: its lines are restored" in capsys.readouterr().err


def test_metrics_that_were_lost_with_the_checkpoint_cost_the_curve_only(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(tmp_path, STEPS)
    for file in (folder.metrics, *folder.path.glob("checkpoint*.pt")):
        file.unlink()
    assert worker.main(folder.path) == worker.DONE
    assert result(folder) == whole | {"lines": []}
    assert "was changed since the training ended, and no checkpoint has its lines" in capsys.readouterr().err


@pytest.mark.parametrize("older", [False, True], ids=["the only one", "older ones beside it"])
def test_a_damaged_checkpoint(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    keep = 3 if older else 1
    folder = begun(tmp_path, 5, resources={**FIELDS["resources"], "keep_checkpoints": keep})
    flipped(folder.checkpoint)
    assert worker.main(folder.path) == (worker.DONE if older else worker.USER_ERROR)
    said = capsys.readouterr().err
    if older:
        assert result(folder) == whole
        assert f"{folder.checkpoint} is damaged: training resumes from checkpoint-000000004.pt" in said
    else:
        assert f"{folder.checkpoint}: is no checkpoint, or a damaged one (BadZipFile); delete it" in said


@pytest.mark.parametrize("part", ["first", "middle", "last"])
def test_every_bit_of_a_checkpoint_counts(tmp_path: Path, part: str) -> None:
    """torch.load alone returns other tensors without a word."""
    folder = begun(tmp_path, 3, resources={"log_every": 1})
    content = bytearray(folder.checkpoint.read_bytes())
    at = {"first": len(content) // 10, "middle": len(content) // 2, "last": len(content) * 8 // 10}[part]
    content[at] ^= 128
    folder.checkpoint.write_bytes(content)
    assert worker.main(folder.path) == worker.USER_ERROR


def test_weights_that_were_damaged_before_the_evaluation_are_made_again(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(tmp_path, STEPS)
    flipped(folder.weights)
    assert worker.main(folder.path) == worker.DONE
    assert result(folder) == whole
    assert "is damaged: the run resumes from its last checkpoint" in capsys.readouterr().err


def test_a_run_that_an_earlier_version_has_trained_is_evaluated(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = begun(tmp_path, STEPS)
    table = json.loads(folder.training_file.read_text())
    folder.training_file.write_text(json.dumps(table["cost"]))
    state = torch.load(folder.checkpoint, weights_only=True)
    del state["log"]
    torch.save(state, folder.checkpoint)
    assert worker.main(folder.path) == worker.DONE
    assert result(folder) == whole


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = begun(tmp_path, 5)
    state = torch.load(folder.checkpoint, weights_only=True)
    del state["log"]
    torch.save(state, folder.checkpoint)
    with folder.metrics.open("a") as stream:
        stream.write("garbled\n")
    assert worker.main(folder.path) == worker.DONE
    assert result(folder) == whole


def test_a_teacher_whose_weights_were_changed_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = experiment(loss={"kind": "soft_teacher"}, evaluation={"sets": ["shapes"]})
    plan, run = planned(tmp_path, one)
    teacher = prepared(tmp_path, plan.runs[str(run.teacher)])
    assert worker.main(teacher.path) == worker.DONE
    flipped(teacher.weights)
    assert worker.main(prepared(tmp_path, run).path) == worker.USER_ERROR
    assert f"{teacher.weights}: is damaged: it was changed since its run ended" in capsys.readouterr().err
