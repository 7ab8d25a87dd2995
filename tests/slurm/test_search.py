"""`harness search --on slurm/...` on the real thing: short, and under the faults that strike workers and driver."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.slurm.chaos import carry_out
from tests.slurm.cluster import Cluster
from tests.slurm.searching import WORKERS, Hunt, check

FAULTS = ("kill_worker", "kill_head", "requeue", "preempt", "sbatch_lies")
LIMIT_S = 900.0
"""Five times what it takes on two idle cores."""


@pytest.mark.slurm
def test_every_trial_ends_once_whatever_happens(cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    hunt = Hunt.create(tmp_path / "campaign", cluster, seeds=12, steps=24, parallelism=WORKERS)
    mischief = carry_out(hunt, seed, len(FAULTS), LIMIT_S, kinds=FAULTS)
    hunt.carry_out_reference()
    causes = check(hunt)
    assert {kind for kind, _ in mischief.struck} == set(FAULTS)
    assert causes["crashed"] + causes["preempted"] >= 1
