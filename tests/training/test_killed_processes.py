"""kill -9 of all processes of a run in its middle: started again, it ends bit for bit as one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import worker
from harness.base.files import read_json, write_json
from harness.runs.folder import RunFolder
from tests.node.small import DATA, experiment, planned, prepared
from tests.training.made import VIT_MODEL, train
from tests.training.test_processes import metrics

STEPS, EVERY, KILL = 24, 5, 12
"""An episode of prototypes is then in its middle, and the queues have turned; checkpoints are at other steps."""
TIMEOUT_S = 1800
SUM: dict[str, Any] = {
    "terms": [
        {"kind": "infonce"},
        {"kind": "tcl", "queue_size": 50, "ramp_epochs": 2, "local": True},
        {"kind": "moco", "queue_size": 60, "momentum": 0.995},
        {"kind": "nearest_neighbour", "queue_size": 48},
        {"kind": "prototypes", "prototypes": 5, "episode": 56, "hidden": 8, "width": 4},
    ]
}
"""Momentum towers, queues and prototypes."""
CAPTIONS = {"source": "captioner", "count": 1, "mixing": "sample"}


def ready(root: Path) -> RunFolder:
    """A run that only trains, so that its last checkpoint stays."""
    resources = {"log_every": 1, "checkpoint_every_steps": EVERY, "micro_batch_size": 4}
    one = experiment(
        model=VIT_MODEL, train=train(STEPS), loss=SUM, captions=CAPTIONS, data=DATA, teacher=None, resources=resources
    )
    folder = prepared(root, planned(root, one)[1])
    write_json(folder.request, read_json(folder.request) | {"phase": "train"})
    return folder


def started(folder: RunFolder, job: int) -> list[subprocess.Popen[bytes]]:
    """The two processes of the run, as SLURM's task starter starts them."""
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    own = {**os.environ, **slurm, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "harness.worker", str(folder.path)]
    ranks = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2))
    return [subprocess.Popen(command, env=own | rank) for rank in ranks]


def kill_after(step: int, folder: RunFolder, processes: list[subprocess.Popen[bytes]]) -> int:
    """Kill both processes once they have taken `step` steps; the last step that they have logged."""
    until = time.monotonic() + TIMEOUT_S
    while folder.read_progress().get("step", 0) < step and time.monotonic() < until:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    for process in processes:
        process.kill()
    assert [process.wait(TIMEOUT_S) for process in processes] == [-signal.SIGKILL] * 2
    return int(folder.read_progress()["step"])


def ended(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.wait(TIMEOUT_S) for process in processes]


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two parts of checkpoints are the same to the last bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_killed_run_of_two_processes_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    alone, killed = (ready(tmp_path / place) for place in ("alone", "killed"))
    assert alone.id == killed.id
    undisturbed, first = started(alone, 1), started(killed, 2)
    try:
        assert KILL <= kill_after(KILL, killed, first) < STEPS
        assert ended(started(killed, 3)) == ended(undisturbed) == [worker.DONE] * 2
    finally:
        for process in (*undisturbed, *first):
            process.kill()

    assert metrics(killed) == metrics(alone)
    assert len(metrics(alone)) == STEPS
    ours, theirs = (torch.load(one.weights, weights_only=True)["state_dict"] for one in (killed, alone))
    assert equal(ours, theirs)
    ours, theirs = (torch.load(one.checkpoint, weights_only=True) for one in (killed, alone))
    assert {"towers", "objective", "momentum", "optimiser"} <= ours.keys()
    for part in ours.keys() - {"progress", "log"}:
        assert equal(ours[part], theirs[part]), part
