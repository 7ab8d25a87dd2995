"""kill -9 at random moments, of the command or of a worker: the next command ends in the undisturbed result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness.runs.folder import State
from harness.runs.store import Store
from tests.node.small import CONFIG, TIMINGS

SPEC = """
question = "Does it survive?"
baseline = "clip"
primary = "shapes/acc1"
seeds = 2
[experiment]
data = { kind = "shapes", train_samples = 256, test_samples = 36 }
model = { name = "small", config = "model.json" }
train = { duration = "60 steps", global_batch_size = 32 }
evaluation = { sets = ["shapes"] }
resources = { checkpoint_every_s = 0.2, log_every = 1 }
[experiment.teacher]
path = "teacher.toml"
[arms]
clip = {}
[arms.fff]
captions = { source = "captioner", count = 3 }
loss = { kind = "multi_positive_sigmoid" }
mining = { kind = "threshold", image_text = { quantile = 0.95 }, image_image = { quantile = 0.95 } }
"""
TEACHER = """
data = { kind = "shapes", train_samples = 256, test_samples = 36 }
captions = { source = "captioner", count = 3, mixing = "sample" }
model = { name = "small", config = "model.json" }
train = { duration = "40 steps", global_batch_size = 32 }
resources = { checkpoint_every_s = 0.2 }
"""
KILLS = 6


def start(folder: Path, store: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HARNESS_STORE": str(store), "HARNESS_TRACKING_URI": "none", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "harness", "run", "ablation.toml", "--jobs", "2"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def results(store: Store) -> dict[str, Any]:
    """Everything of the runs that must not depend on what happened on the way."""
    return {
        folder.id: (
            [
                {k: v for k, v in line.values.items() if k not in TIMINGS} | {"step": line.step}
                for line in folder.step_metrics()
            ],
            folder.record().evaluations,
            {k: v.sum().item() for k, v in torch.load(folder.weights, weights_only=True)["state_dict"].items()},
        )
        for folder in store.runs()
    }


def kill_something(command: subprocess.Popen[bytes], store: Store, chance: random.Random) -> str:
    """Kill the command, or a worker that is at work on a run."""
    pids = [
        int(pid)
        for folder in store.runs()
        if folder.state() is State.RUNNING and (pid := folder.read_progress().get("pid"))
    ]
    victim = chance.choice(["command", "worker"]) if pids else "command"
    pid = command.pid if victim == "command" else chance.choice(pids)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return "nothing, it had just ended"
    return victim


@pytest.mark.slow
def test_killed_at_random_moments_ends_in_the_same_result(tmp_path: Path) -> None:
    (tmp_path / "ablation.toml").write_text(SPEC)
    (tmp_path / "teacher.toml").write_text(TEACHER)
    (tmp_path / "model.json").write_text(json.dumps(CONFIG))
    undisturbed = start(tmp_path, tmp_path / "straight")
    output, _ = undisturbed.communicate(timeout=900)
    assert undisturbed.returncode == 0, output.decode()

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance, store = random.Random(seed), Store(tmp_path / "killed")
    finished: dict[str, int] = {}
    for _ in range(KILLS):
        command = start(tmp_path, store.root)
        time.sleep(chance.uniform(3, 14))
        print("killed:", kill_something(command, store, chance))
        command.kill()
        command.wait()
        for folder in store.runs():
            if folder.state() is State.DONE:
                written = folder.record_file.stat().st_mtime_ns
                assert finished.setdefault(folder.id, written) == written, "a finished run was touched again"
    last = start(tmp_path, store.root)
    output, _ = last.communicate(timeout=900)
    assert last.returncode == 0, output.decode()

    for run, written in finished.items():
        assert store.run(run).record_file.stat().st_mtime_ns == written, "a finished run was trained again"
    assert results(store) == results(Store(tmp_path / "straight"))
    assert not [p for p in psutil.Process().children(recursive=True) if "fork_server" in " ".join(p.cmdline())]
