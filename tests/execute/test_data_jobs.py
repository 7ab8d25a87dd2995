"""Shards of `harness data` as an array of jobs: what the scheduler is asked for."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, cast

from harness.config.profile import load_profile
from harness.execute.slurm.data_jobs import submit_shards
from harness.execute.slurm.scheduler import ArrayRequest, Scheduler
from harness.runs.store import Store


class Asked:
    batch: ArrayRequest

    def submit(self, batch: ArrayRequest) -> str:
        self.batch = batch
        return "12"


def test_each_job_makes_one_shard_with_one_process(tmp_path: Path) -> None:
    asked = Asked()
    profile = load_profile("slurm/eight_gpu_nodes.toml")
    arguments = [str(tmp_path / "my spec.toml"), "--set", "data.raw=txt"]
    scheduler = cast(Scheduler, cast(Any, asked))
    assert submit_shards(scheduler, profile, Store(tmp_path), "features", arguments, 6) == "12"
    batch = asked.batch
    assert batch.tasks == 6
    assert (batch.resources.nodes, batch.resources.tasks_per_node) == (1, 1)
    assert batch.resources.gpus_per_task == profile.gpus_per_task
    words = shlex.split(batch.command)
    python = profile.python or sys.executable
    assert words[:2] == ["env", f"HARNESS_STORE={tmp_path}"]
    assert words[2:] == [python, "-m", "harness", "data", "features", *arguments, "--shard", "$SLURM_ARRAY_TASK_ID/6"]
