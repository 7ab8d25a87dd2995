"""The node side's bad days: each ends in one sentence, a cause and an exit status, and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from harness import worker
from harness.runs.folder import RunFolder, State
from harness.training.checkpoint import FORMAT
from tests.node.small import experiment, planned, prepared
from tests.records import metric_in


def ready(root: Path, **changes: object) -> RunFolder:
    _, run = planned(root, experiment(**changes))
    return prepared(root, run)


def started(folder: RunFolder) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.worker", str(folder.path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_run_leaves_record_metrics_weights_and_outcomes(tmp_path: Path) -> None:
    folder = ready(tmp_path)
    assert worker.main(folder.path) == worker.DONE
    record = folder.record()
    assert folder.state() is State.DONE
    assert (record.steps, record.samples_seen) == (8, 128)
    assert {one.set for one in record.evaluations} == {"shapes", "shapes_retrieval"}
    assert metric_in(record, "shapes/acc1") is not None
    assert record.data.samples == 96
    assert folder.weights.exists()
    assert not folder.checkpoint.exists()
    assert {file.name for file in folder.outcomes.iterdir()} == {
        f"{one.set}.{one.protocol_id}.parquet" for one in record.evaluations
    }


def test_done_run_is_only_measured_again(tmp_path: Path) -> None:
    folder = ready(tmp_path, evaluation={"sets": ("shapes",)})
    assert worker.main(folder.path) == worker.DONE
    first, weights = folder.record(), folder.weights.stat().st_mtime_ns
    again = ready(tmp_path, evaluation={"sets": ("shapes", "shapes_retrieval")})
    assert again.path == folder.path
    assert worker.main(folder.path) == worker.DONE
    second = folder.record()
    assert second.evaluations[0] == first.evaluations[0]
    assert [one.set for one in second.evaluations] == ["shapes", "shapes_retrieval"]
    assert (second.steps, second.ended_at) == (first.steps, first.ended_at)
    assert folder.weights.stat().st_mtime_ns == weights


def test_what_another_process_finished_meanwhile_is_no_second_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node was taken for dead and its job began again elsewhere, but the run ended before that one had started."""
    monkeypatch.setenv("HARNESS_SCHEDULED", "1")
    folder = ready(tmp_path)
    assert [worker.main(folder.path), worker.main(folder.path)] == [worker.DONE, worker.DONE]
    assert [attempt.end.cause for attempt in folder.attempts.all() if attempt.end] == ["completed"]
    assert folder.attempts.newest() == 1


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_damaged_checkpoint(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ready(tmp_path)
    folder.checkpoint.write_bytes(content)
    assert worker.main(folder.path) == worker.USER_ERROR
    said = capsys.readouterr().err
    assert "checkpoint.pt: is no checkpoint" in said
    assert "delete it to start over" in said
    assert "Traceback" not in said
    assert folder.failure().cause == "user_error"


def test_checkpoint_of_another_run(tmp_path: Path) -> None:
    folder = ready(tmp_path)
    state = {"format": FORMAT, "run_id": "ffffffffffff", "progress": {"step": 3, "duration_s": 1.0, "attempt": 1}}
    torch.save(state, folder.checkpoint)
    assert worker.main(folder.path) == worker.USER_ERROR
    assert "belongs to run ffffffffffff" in folder.failure().message


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    folder = ready(tmp_path)
    torch.save({"format": FORMAT, "run_id": folder.id, "progress": Bomb()}, folder.checkpoint)
    assert worker.main(folder.path) == worker.USER_ERROR
    assert not (tmp_path / "boom").exists()


def test_request_for_another_run(tmp_path: Path) -> None:
    folder = ready(tmp_path)
    folder.request.write_text(json.dumps(json.loads(folder.request.read_text()) | {"run_id": "0" * 12}))
    assert worker.main(folder.path) == worker.USER_ERROR
    assert "is for another run" in folder.failure().message


def test_changed_spec_under_an_id(tmp_path: Path) -> None:
    folder = ready(tmp_path)
    request = json.loads(folder.request.read_text())
    request["experiment"]["train"]["global_batch_size"] = 8
    folder.request.write_text(json.dumps(request))
    assert worker.main(folder.path) == worker.USER_ERROR
    assert "data or code changed since the plan" in folder.failure().message


def test_diverged_run_says_where_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    train = {"duration": "8 steps", "global_batch_size": 16, "optimiser": {"lr": 1e30}, "schedule": "constant"}
    folder = ready(tmp_path, train=train)
    assert worker.main(folder.path) == worker.USER_ERROR
    message = folder.failure().message
    assert "is not finite at step" in message
    assert "samples" in message
    assert "lower train.optimiser.lr" in message
    assert folder.state() is State.FAILED


def test_signal_checkpoints_and_leaves(tmp_path: Path) -> None:
    train = {"duration": "5000 steps", "global_batch_size": 16}
    folder = ready(tmp_path, train=train)
    process = started(folder)
    deadline = time.monotonic() + 120
    while folder.read_progress().get("step", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == worker.STOPPED
    assert folder.checkpoint.exists()
    assert folder.state() is State.INTERRUPTED
    assert folder.failure().cause == "interrupted"


def test_second_worker_on_a_living_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ready(tmp_path)
    with folder.claimed():
        assert worker.main(folder.path) == worker.USER_ERROR
        assert folder.state() is State.RUNNING
    assert "another process works on this run" in capsys.readouterr().err
    assert not folder.failure_file.exists()


@pytest.mark.slow
def test_an_old_attempt_stops_itself_when_a_new_one_takes_over(tmp_path: Path) -> None:
    """As after a node failure: SLURM starts the run again while the old process goes on."""
    recipe = {"duration": "60 steps", "global_batch_size": 16, "optimiser": {"lr": 1e-2}}
    alone, pair = ready(tmp_path / "alone", train=recipe), ready(tmp_path / "pair", train=recipe)
    old = started(pair)
    while pair.read_progress().get("step", 0) < 5:
        assert old.poll() is None
        time.sleep(0.02)
    old.send_signal(signal.SIGSTOP)  # as on a node that hangs
    command = [sys.executable, "-m", "harness.worker", str(pair.path)]
    new = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_SCHEDULED": "1"})
    while pair.attempts.newest() < 2:
        assert new.poll() is None
        time.sleep(0.02)
    old.send_signal(signal.SIGCONT)
    _, said = old.communicate(timeout=250)
    new.wait(timeout=250)
    assert (new.returncode, old.returncode) == (worker.DONE, worker.SUPERSEDED)
    assert "attempt 2 has taken over from attempt 1" in said
    assert [attempt.end.cause for attempt in pair.attempts.all() if attempt.end] == ["superseded", "completed"]
    assert worker.main(alone.path) == worker.DONE
    assert [(line.step, line.values["loss"]) for line in pair.step_metrics()] == [
        (line.step, line.values["loss"]) for line in alone.step_metrics()
    ]
    assert [one.metrics for one in pair.record().evaluations] == [one.metrics for one in alone.record().evaluations]
