"""A loss, a miner and a metric of one's own on the cluster, from copies of their files: the numbers of one machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.slurm.campaign import Campaign, check_attempts, check_results
from tests.slurm.cluster import Cluster, until

pytestmark = pytest.mark.slurm
EXAMPLES = Path(__file__).parents[2] / "examples"
PARTS = ("my_loss.py", "my_miner.py", "my_metric.py")
RUNS = 5
"""Four arms with a seed, and a teacher."""


def test_jobs_need_only_the_copies_in_the_run_folders(cluster: Cluster, tmp_path: Path) -> None:
    campaign = Campaign.create(tmp_path / "campaign", cluster)
    for name in (*PARTS, "tiny.json", "own_parts_teacher.toml"):
        shutil.copy(EXAMPLES / name, campaign.folder)
    example = (EXAMPLES / "own_parts.toml").read_text()
    assert "seeds = 2" in example
    assert '"60 steps"' in example
    campaign.spec.write_text(example.replace("seeds = 2", "seeds = 1").replace('"60 steps"', '"20 steps"'))
    campaign.carry_out_reference()
    begun = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    assert begun.returncode == 0, begun.stderr
    for name in PARTS:
        (campaign.folder / name).unlink()
    until(lambda: not cluster.ask("squeue", "-h"), "the queue to empty", patience_s=900)
    assert check_results(campaign) == RUNS
    assert check_attempts(campaign) == {"completed": RUNS}
