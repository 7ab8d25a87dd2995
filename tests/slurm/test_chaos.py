"""The campaign of `make chaos`, short: at least 40 runs, and every kind of fault once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.slurm.campaign import Campaign
from tests.slurm.chaos import carry_out, check
from tests.slurm.cluster import Cluster
from tests.slurm.faults import KINDS

LIMIT_S = 1500.0
"""Five times what it takes on two idle cores."""


@pytest.mark.slurm
def test_every_run_ends_once_whatever_happens(cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    campaign = Campaign.create(tmp_path / "campaign", cluster, seeds=10, steps=30, pack=3, staged=True)
    mischief = carry_out(campaign, seed, len(KINDS), LIMIT_S)
    campaign.carry_out_reference()
    check(campaign, mischief)
    assert {kind for kind, _ in mischief.struck} == set(KINDS)
