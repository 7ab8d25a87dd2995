"""Seeds on demand on the cluster: the same looks as on one machine, also after a kill, and detached."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.campaign import Campaign, check_attempts, intents_of
from tests.slurm.cluster import Cluster, until
from tests.test_seeds_on_demand import SPEC, looks_in

pytestmark = pytest.mark.slurm


def test_a_killed_command_goes_on_to_the_looks_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    campaign = Campaign.create(tmp_path / "campaign", cluster)
    campaign.spec.write_text(SPEC)
    campaign.carry_out_reference()
    expected = looks_in(campaign.reference.root)
    assert len(expected) >= 2
    assert not expected[-1]["more"]
    head = campaign.head()
    until(lambda: looks_in(campaign.store.root), lambda: f"a look: {campaign.log}")
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    again = ("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    assert "continues in the background" in campaign.command(*again).stdout
    until(lambda: len(looks_in(campaign.store.root)) == len(expected), lambda: f"all looks: {campaign.log}")
    assert looks_in(campaign.store.root) == expected
    assert campaign.command("verify", campaign.spec.name).returncode == 0
    check_attempts(campaign)
    submitted = [run for intent in intents_of(campaign.store).values() for task in intent["tasks"] for run in task]
    assert len(submitted) == len(set(submitted)) == len(expected[-1]["runs"])
