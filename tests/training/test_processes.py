"""Several processes that share a run's batches: started by the worker, by torchrun's or by SLURM's variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from harness import worker
from harness.distributed import Place, place
from harness.errors import DispatchError
from harness.store import RunFolder, State
from harness.training.speed import TIMINGS
from tests.node.small import experiment, planned, prepared
from tests.training.made import VIT_MODEL, train

STEPS = 6
TIMEOUT_S = 600


def ready(root: Path, **changes: object) -> RunFolder:
    fields: dict[str, object] = {"model": VIT_MODEL, "train": train(STEPS), "resources": {"log_every": 1}}
    one = experiment(**fields | changes)
    return prepared(root, planned(root, one)[1])


def started(folder: RunFolder, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.worker", str(folder.path)]
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **own})


def metrics(folder: RunFolder) -> list[dict[str, float]]:
    return [{k: v for k, v in line.values.items() if k not in TIMINGS} for line in folder.step_metrics()]


@pytest.mark.slow
def test_a_run_of_two_processes_equals_one(tmp_path: Path) -> None:
    alone = ready(tmp_path / "alone")
    assert worker.main(alone.path) == worker.DONE

    two = ready(tmp_path / "two", resources={"processes": 2, "log_every": 1})
    assert two.id == alone.id
    process = started(two)
    assert process.wait(TIMEOUT_S) == worker.DONE
    record = two.record()
    assert (record.cost.devices, record.cost.micro_batch_size, record.steps) == (2, 8, STEPS)
    assert len(metrics(two)) == len(metrics(alone)) == STEPS
    for ours, theirs in zip(metrics(two)[:2], metrics(alone)[:2], strict=True):  # before float32's rounding has grown
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert list(two.path.glob("meeting-*")) == []


@pytest.mark.slow
def test_a_request_to_stop_reaches_all(tmp_path: Path) -> None:
    folder = ready(tmp_path, resources={"processes": 2}, train=train(100_000))
    process = started(folder)
    until = time.monotonic() + TIMEOUT_S
    while folder.read_progress().get("step", 0) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == worker.STOPPED
    assert folder.state() is State.INTERRUPTED
    state = torch.load(folder.checkpoint, weights_only=True)
    assert state["progress"]["step"] == folder.read_progress()["step"]


@pytest.mark.slow
def test_when_one_dies_the_others_end_and_the_run_goes_on_later(tmp_path: Path) -> None:
    resources = {"processes": 2, "checkpoint_every_steps": 2}
    folder = ready(tmp_path, resources=resources, train=train(100_000))
    process = started(folder)
    until = time.monotonic() + TIMEOUT_S
    while not folder.checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert process.wait(TIMEOUT_S) == worker.BROKEN
    assert folder.failure().cause == "crashed"
    assert not folder.is_locked()
    assert folder.checkpoint.exists()


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    folder = ready(tmp_path)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness.worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run([sys.executable, "-m", *command, str(folder.path)], env=environment, timeout=TIMEOUT_S)
    assert ended.returncode == 0
    assert folder.record().cost.devices == 2


@pytest.mark.slow
def test_what_one_process_cannot_do_is_said_once(tmp_path: Path) -> None:
    folder = ready(tmp_path, resources={"processes": 3})
    process = started(folder)
    said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == worker.USER_ERROR
    assert folder.failure().cause == "user_error"
    assert "3 processes cannot share a batch of 16; use 2 processes" in folder.failure().message
    assert "Traceback" not in said


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("processes", "environment", "expected"),
    [
        (1, {}, Place(size=1, meeting=f"pid{os.getpid()}")),
        (4, {}, Place(size=4, starts=4, meeting=f"pid{os.getpid()}")),
        (1, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, 2)),
        (
            1,
            SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            Place(1, 2, 1, meeting="slurm7.0.0"),
        ),
        (8, SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, Place(4, 8, starts=4, meeting="slurm7.0.0")),
        (
            4,
            SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            Place(size=4, starts=4, meeting=f"pid{os.getpid()}"),
        ),
    ],
)
def test_who_a_process_is(processes: int, environment: Mapping[str, str], expected: Place) -> None:
    assert place(processes, environment) == expected


def test_tasks_that_cannot_make_up_the_processes() -> None:
    environment = SLURM | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}
    with pytest.raises(DispatchError, match="3 SLURM tasks cannot start 4 processes"):
        place(4, environment)
