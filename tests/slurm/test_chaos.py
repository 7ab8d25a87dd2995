"""The campaign of `make chaos`, short and in one stage: at least 40 runs, and every kind of fault once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.slurm.campaign import Campaign
from tests.slurm.chaos import carry_out, check
from tests.slurm.cluster import Cluster
from tests.slurm.faults import KINDS

FAULTS = tuple(kind for kind in KINDS if kind != "set_added")
"""`make chaos` adds a set too, and evaluates in a stage of its own."""
LIMIT_S = 1500.0
"""Five times what it takes on two idle cores."""


@pytest.mark.slurm
def test_every_run_ends_once_whatever_happens(cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    campaign = Campaign.create(tmp_path / "campaign", cluster, seeds=10, steps=30, pack=3)
    mischief = carry_out(campaign, seed, len(FAULTS), LIMIT_S, kinds=FAULTS)
    campaign.carry_out_reference()
    check(campaign, mischief)
    assert {kind for kind, _ in mischief.struck} == set(FAULTS)
