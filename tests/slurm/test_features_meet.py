"""Two or three features at once, each fine alone: a sweep ends, submits nothing twice, and says what is true."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.slurm.campaign import Campaign, check_attempts, intents_of
from tests.slurm.cluster import Cluster, until
from tests.slurm.faults import NODES, Mischief

pytestmark = pytest.mark.slurm
MORE = ('sets = ["shapes"]', 'sets = ["shapes", "shapes_retrieval"]')
STAGE = '\n[evaluation]\npartitions = ["main"]\nmem_gb = 2\ntime_limit_min = 5\n'


def of_one_arm(folder: Path, cluster: Cluster, *, steps: int = 40, profile: str = "") -> Campaign:
    """Two runs of one arm, without a teacher."""
    campaign = Campaign.create(folder / "campaign", cluster, seeds=2, steps=steps, profile=profile)
    text = campaign.spec.read_text()
    campaign.spec.write_text(text[: text.index("[experiment.teacher]")] + "[arms]\nclip = {}\n")
    return campaign


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def drain(cluster: Cluster) -> None:
    """Jobs stay in the queue; the fixture puts the nodes back into service."""
    for node in NODES:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")


def submitted(campaign: Campaign) -> Counter[str]:
    """How often each run was submitted."""
    return Counter(run for intent in intents_of(campaign.store).values() for task in intent["tasks"] for run in task)


def causes(campaign: Campaign) -> list[list[str]]:
    return [[one.end.cause if one.end else "" for one in run.attempts.all()] for run in campaign.runs()]


def at_work(campaign: Campaign) -> Mischief:
    mischief = Mischief(campaign)
    until(mischief.victims, lambda: f"a run at work: {campaign.log}")
    return mischief


def test_a_new_set_whose_jobs_die_before_they_start(cluster: Cluster, tmp_path: Path) -> None:
    campaign = of_one_arm(tmp_path, cluster)
    campaign.finish()
    change(campaign.spec, *MORE)
    change(campaign.profile, "attempts = 12", "attempts = 3")
    campaign.profile.write_text('setup = ["exit 1"]\n' + campaign.profile.read_text())
    said = campaign.finish(status=1)
    assert "never_started" in said
    assert causes(campaign) == [["completed", *["never_started"] * 3]] * 2
    assert set(submitted(campaign).values()) == {4}


def test_a_cancelled_evaluation_while_a_command_watches(cluster: Cluster, tmp_path: Path) -> None:
    campaign = of_one_arm(tmp_path, cluster)
    campaign.finish()
    change(campaign.spec, *MORE)
    assert "2 to evaluate" in campaign.command("plan", campaign.spec.name).stdout
    drain(cluster)
    head = campaign.head()
    until(lambda: cluster.ask("squeue", "-h"), lambda: f"jobs in the queue: {campaign.log}")
    told = campaign.command("status", campaign.spec.name).stdout
    assert told.count("trained, evaluation pending") >= 2, told
    assert campaign.command("cancel", campaign.runs()[0].id).returncode == 0
    assert campaign.command("cancel", campaign.spec.name).returncode == 0
    assert head.wait(timeout=300) != 0, campaign.log
    assert not cluster.ask("squeue", "-h")
    assert set(submitted(campaign).values()) == {2}
    assert "trained, evaluation missing" in campaign.command("status", campaign.spec.name).stdout


@pytest.mark.parametrize("detached", [False, True])
def test_a_bad_arm_in_a_pack_with_an_evaluation_stage(cluster: Cluster, tmp_path: Path, detached: bool) -> None:
    campaign = of_one_arm(tmp_path, cluster, profile="pack = 4")
    campaign.spec.write_text(campaign.spec.read_text() + "bad = { train = { optimiser = { lr = 1e30 } } }\n")
    campaign.profile.write_text(campaign.profile.read_text() + STAGE)
    if detached:
        assert campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach").returncode == 0
        until(lambda: not cluster.ask("squeue", "-h"), "the queue to empty", patience_s=600)
    else:
        campaign.finish(status=1)
    done = [run for run in campaign.runs() if run.record_file.exists()]
    assert len(done) == 2, causes(campaign)
    assert all(run.record().evaluations for run in done)
    assert Counter(one[-1] for one in causes(campaign)) == {"completed": 2, "user_error": 2}


def test_cancel_and_run_at_once(cluster: Cluster, tmp_path: Path) -> None:
    campaign = of_one_arm(tmp_path, cluster, steps=200)
    head = campaign.head()
    at_work(campaign)
    assert campaign.command("cancel", campaign.spec.name).returncode == 0
    campaign.finish()
    head.wait(timeout=60)
    assert check_attempts(campaign)["completed"] == 2


def test_a_run_in_progress_here_is_not_given_to_jobs(cluster: Cluster, tmp_path: Path) -> None:
    campaign = of_one_arm(tmp_path, cluster, steps=300)
    words = [sys.executable, "-m", "harness", "run", campaign.spec.name, "--on", "local"]
    local = subprocess.Popen(words, cwd=campaign.folder, env=campaign.environment(campaign.store))
    try:
        until(lambda: [run for run in campaign.runs() if run.is_locked()], "a run at work here")
        refused = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name)
        assert refused.returncode == 2, refused.stdout
        assert "in progress outside of SLURM" in refused.stderr
        assert not cluster.ask("squeue", "-h")
        assert local.wait(timeout=600) == 0
    finally:
        local.kill()
    assert check_attempts(campaign) == {"completed": 2}


def test_another_spec_of_the_same_name_in_one_store(cluster: Cluster, tmp_path: Path) -> None:
    one = of_one_arm(tmp_path / "one", cluster)
    other = of_one_arm(tmp_path / "other", cluster, steps=30)
    drain(cluster)
    assert one.command("run", one.spec.name, "--on", one.profile.name, "--detach").returncode == 0
    queued = cluster.ask("squeue", "-h", "-r", "-o", "%i").split()
    other.command("run", other.spec.name, "--on", other.profile.name, "--detach", store=one.store)
    asked = other.command("cancel", other.spec.name, "--vanished", store=one.store)
    assert "1 job" not in asked.stdout
    assert set(queued) <= set(cluster.ask("squeue", "-h", "-r", "-o", "%i").split())


def test_a_wish_to_cancel_outlives_a_dead_controller(cluster: Cluster, tmp_path: Path) -> None:
    campaign = of_one_arm(tmp_path, cluster)
    drain(cluster)
    head = campaign.head()
    queued = until(lambda: cluster.ask("squeue", "-h"), lambda: f"jobs in the queue: {campaign.log}")
    cluster.save(queued.split()[0].partition("_")[0])
    cluster.daemon("kill", "slurmctld")
    asked = campaign.command("cancel", campaign.spec.name)
    assert asked.returncode == 1, asked.stdout + asked.stderr
    cluster.daemon("start", "slurmctld")
    for node in NODES:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    until(lambda: not cluster.ask("squeue", "-h"), "the queue to empty")
    assert head.wait(timeout=300) != 0, campaign.log
    assert not any(run.progress.exists() for run in campaign.runs()), "they found the wish and did nothing"
    campaign.finish()
    assert all(run.record_file.exists() for run in campaign.runs())
