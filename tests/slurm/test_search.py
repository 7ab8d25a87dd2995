"""`harness search --on slurm/...` on the real thing: short, and under the faults that strike workers and driver."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.slurm.campaign import check_submissions
from tests.slurm.chaos import carry_out
from tests.slurm.cluster import Cluster, until
from tests.slurm.searching import WORKERS, Hunt, check, check_study

FAULTS = ("kill_worker", "kill_head", "requeue", "preempt", "sbatch_lies")
LIMIT_S = 1200.0
"""It took 7 minutes beside work that loaded the two cores tenfold."""


@pytest.mark.slurm
def test_every_trial_ends_once_whatever_happens(cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    hunt = Hunt.create(tmp_path / "campaign", cluster, seeds=12, steps=24, parallelism=WORKERS)
    mischief = carry_out(hunt, seed, len(FAULTS), LIMIT_S, kinds=FAULTS)
    hunt.carry_out_reference()
    causes = check(hunt)
    assert {kind for kind, _ in mischief.struck} == set(FAULTS)
    assert causes["crashed"] + causes["preempted"] >= 1


@pytest.mark.slurm
def test_a_cancelled_search_goes_on_when_asked_and_confirms_its_winner(cluster: Cluster, tmp_path: Path) -> None:
    hunt = Hunt.create(tmp_path / "campaign", cluster, seeds=4, steps=24, parallelism=2)
    head = hunt.head()
    until(lambda: [one for one in hunt.runs() if one.read_progress() and len(hunt.runs()) > 1], "a run at work")
    cancelled = hunt.command("cancel", hunt.spec.name)
    assert cancelled.returncode == 0, cancelled.stderr
    assert head.wait(timeout=300) == 1, hunt.log
    until(lambda: not cluster.ask("squeue", "-h"), "the queue to empty")
    hunt.spec.write_text(f"{hunt.spec.read_text()}[confirm]\nseeds = 1\n")
    assert "winner" in hunt.finish()
    told = hunt.command("status", hunt.spec.name)
    assert told.returncode == 0, told.stderr
    assert "configuration 3" in told.stdout
    check_study(hunt.driver())
    check_submissions(hunt)
