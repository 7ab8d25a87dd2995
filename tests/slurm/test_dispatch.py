"""`harness run --on slurm/...` on the real thing: to the reference's numbers, through each failure on its own."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import harness
from tests.slurm.campaign import Campaign, check_attempts, check_results, check_submissions, intents_of
from tests.slurm.cluster import Cluster, until
from tests.slurm.faults import Mischief, Victim

pytestmark = pytest.mark.slurm
RUNS = 5
"""Four arms with a seed, and a teacher."""


@pytest.fixture(scope="module")
def straight(_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the campaign's runs undisturbed."""
    campaign = Campaign.create(tmp_path_factory.mktemp("straight") / "campaign", _cluster)
    campaign.carry_out_reference()
    return campaign.reference.root


def create(folder: Path, cluster: Cluster, straight: Path, *, pack: int = 1, profile: str = "") -> Campaign:
    campaign = Campaign.create(folder / "campaign", cluster, pack=pack, profile=profile)
    campaign.straight = straight
    return campaign


def running(campaign: Campaign) -> Mischief:
    """Waits until a run is at work."""
    mischief = Mischief(campaign)
    until(mischief.victims, lambda: f"a run at work: {campaign.log}")
    return mischief


def test_a_sweep_of_packed_runs_ends_in_the_same_numbers(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    campaign = create(tmp_path, cluster, straight, pack=4)
    said = campaign.finish()
    assert "clip" in said
    assert check_results(campaign) == RUNS
    assert check_attempts(campaign) == {"completed": RUNS}
    assert check_submissions(campaign) == len(intents_of(campaign.store))
    again = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name)
    assert again.returncode == 0
    assert check_submissions(campaign) == len(intents_of(campaign.store)), "a finished sweep submits nothing"
    told = campaign.command("status", campaign.spec.name)
    assert "done" in told.stdout, told.stdout + told.stderr


def test_detached_jobs_end_without_anybody(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    campaign = create(tmp_path, cluster, straight)
    begun = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    assert begun.returncode == 0, begun.stderr
    until(lambda: not cluster.ask("squeue", "-h"), "the queue to empty", patience_s=900)
    assert check_results(campaign) == RUNS
    told = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name)
    assert told.returncode == 0, told.stderr
    assert check_attempts(campaign) == {"completed": RUNS}


@pytest.mark.parametrize("when", ["before", "after", "lie"])
def test_a_head_that_dies_around_sbatch_doubles_nothing(
    cluster: Cluster, straight: Path, tmp_path: Path, when: str
) -> None:
    campaign = create(tmp_path, cluster, straight, pack=4)
    campaign.armed.write_text(when)
    killed = campaign.finish(status=0 if when == "lie" else -signal.SIGKILL)
    if when != "lie":
        campaign.finish()
    assert not campaign.armed.exists(), killed
    assert check_results(campaign) == RUNS
    assert check_attempts(campaign) == {"completed": RUNS}
    check_submissions(campaign)
    accepted = campaign.folder / "armed.accepted"
    assert accepted.exists() == (when != "before")


def test_a_cancelled_job_is_told_and_goes_on_when_asked(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    campaign = create(tmp_path, cluster, straight)
    head = campaign.head()
    victim = running(campaign).victims()[0]
    cluster.ask("scancel", victim.job)
    assert head.wait(timeout=900) != 0
    assert "cancelled" in campaign.log
    campaign.finish()
    assert check_results(campaign) == RUNS
    causes = check_attempts(campaign)
    assert causes["cancelled"] >= 1 or causes["completed"] == RUNS


def test_a_job_without_enough_memory_gets_more(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    campaign = create(tmp_path, cluster, straight, pack=5, profile="mem_gb = 0.25")
    text = campaign.profile.read_text()
    campaign.profile.write_text(text.replace("[retry]", "[retry]\nmem_factor = 8.0"))
    campaign.finish()
    assert check_results(campaign) == RUNS
    assert check_attempts(campaign)["out_of_memory_host"] >= 1


def test_code_that_is_edited_after_submission_changes_nothing(
    cluster: Cluster, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(Path(harness.__file__).parent, checkout / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    campaign = create(tmp_path, cluster, straight, pack=5)
    nodes = ("n1", "n2", "n3")
    for node in nodes:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=edit")
    begun = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    assert begun.returncode == 0, begun.stderr
    for file in ("worker.py", "node/attempt.py", "execute/slurm/node.py"):
        (checkout / "harness" / file).write_text("raise RuntimeError('edited')\n")
    monkeypatch.delenv("PYTHONPATH")
    for node in nodes:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
    until(lambda: not cluster.ask("squeue", "-h"), "the queue to empty", patience_s=900)
    assert check_results(campaign) == RUNS


def test_a_quota_of_jobs_only_takes_longer(cluster: Cluster, tmp_path: Path) -> None:
    campaign = Campaign.create(tmp_path / "campaign", cluster, seeds=2, profile='qos = "few"')  # 9 runs, 5 jobs
    campaign.finish()
    campaign.carry_out_reference()
    assert check_results(campaign) == 9
    assert check_attempts(campaign) == {"completed": 9}
    check_submissions(campaign)


@pytest.mark.parametrize(
    ("line", "known"),
    [('partitions = ["nowhere"]', "main"), ('account = "nobody"', "research"), ("gpus_per_task = 9", "2")],
)
def test_what_the_cluster_has_not_is_one_sentence(cluster: Cluster, tmp_path: Path, line: str, known: str) -> None:
    campaign = Campaign.create(tmp_path / "campaign", cluster, profile=line)
    said = campaign.finish(status=2)
    assert known in said
    assert "Traceback" not in said
    assert not cluster.ask("squeue", "-h")


def test_without_accounting_the_same_ends_are_reached(
    without_accounting: Cluster, straight: Path, tmp_path: Path
) -> None:
    campaign = create(tmp_path, without_accounting, straight, pack=2)
    head = campaign.head()
    mischief = running(campaign)
    victim = mischief.victims()[0]
    os.kill(victim.pid, signal.SIGKILL)
    other = until(lambda: [one for one in mischief.victims() if one.pid != victim.pid], "another run at work")[0]
    without_accounting.ask("scontrol", "requeue", other.job)
    assert head.wait(timeout=900) == 0, campaign.log
    assert check_results(campaign) == RUNS
    causes = check_attempts(campaign)
    assert causes["crashed"] >= 1
    assert causes["preempted"] + causes["crashed"] >= 2


def test_a_job_that_slurm_failed_to_launch_goes_on(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    campaign = create(tmp_path, cluster, straight, pack=5)
    latest = int(cluster.submit("true"))
    # Where its folder on the node should be there is a file: the node can't launch it, and SLURM holds it for ever.
    spool = [cluster.root / "spool" / node for node in ("n1", "n2", "n3")]
    blocks = [folder / f"job{number:05}" for folder in spool for number in range(latest + 1, latest + 5)]
    for block in blocks:
        block.touch()
    begun = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    assert begun.returncode == 0, begun.stderr
    until(lambda: "launch failed requeued held" in cluster.ask("squeue", "-h", "-o", "%r"), "a failed launch")
    for block in blocks:
        block.unlink()
    campaign.finish()
    assert "released" in campaign.log
    assert check_results(campaign) == RUNS


def test_runs_on_two_nodes_go_on_after_a_requeue_and_a_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    undisturbed, campaign = (_on_two_nodes(tmp_path / name, cluster) for name in ("straight", "campaign"))
    undisturbed.finish()
    campaign.straight = undisturbed.store.root
    head = campaign.head()
    (victim, *_) = running(campaign).victims()
    cluster.ask("scontrol", "requeue", victim.job)
    newer = until(lambda: _later(campaign, victim.number), lambda: f"a second attempt: {campaign.log}")
    assert newer is not None
    end = datetime.now() + timedelta(seconds=5)
    cluster.ask("scontrol", "update", f"JobId={newer.job}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
    assert head.wait(timeout=900) == 0, campaign.log
    assert check_results(campaign) == 1
    causes = check_attempts(campaign)
    assert causes["completed"] == 1
    assert sum(causes.values()) >= 2, "it was queued again"
    assert campaign.runs()[0].record().cost.devices == 2


def test_the_tasks_of_an_evaluation_stage_measure_together(cluster: Cluster, tmp_path: Path) -> None:
    campaign = _of_one_run(Campaign.create(tmp_path / "campaign", cluster))
    campaign.spec.write_text(campaign.spec.read_text().replace("test_samples = 36", "test_samples = 600"))
    stage = ["[evaluation]", 'partitions = ["main"]', "nodes = 2", "mem_gb = 2", "time_limit_min = 5"]
    campaign.profile.write_text(campaign.profile.read_text() + "\n".join(stage))
    campaign.finish()
    (run,) = campaign.runs()
    ends = [attempt.end for attempt in run.attempts.all()]
    assert [end and end.cause for end in ends] == ["completed", "completed"], "one that trains, one that evaluates"
    log = run.log.read_text()
    assert "process 1 of 2 has encoded 256 images" in log
    assert "process 2 of 2 has encoded 344 images" in log
    assert run.record().cost.devices == 1, "those that trained"
    campaign.carry_out_reference()
    assert check_results(campaign) == 1


def test_a_suite_of_which_sets_are_absent_ends(cluster: Cluster, tmp_path: Path) -> None:
    """Nothing waits for sets that `check` lets go: one submission for each run, and the second command submits none."""
    campaign = Campaign.create(tmp_path / "campaign", cluster, pack=1)
    campaign.spec.write_text(campaign.spec.read_text().replace('sets = ["shapes"]', 'sets = ["shapes", "retrieval"]'))
    told = campaign.command("check", campaign.spec.name)
    assert "flickr30k" in told.stdout, told.stdout + told.stderr
    campaign.finish()
    assert check_attempts(campaign) == {"completed": RUNS}
    submitted = _submitted(campaign)
    assert submitted == dict.fromkeys(submitted, 1)
    again = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name)
    assert again.returncode == 0, again.stderr
    assert _submitted(campaign) == submitted
    assert len(submitted) == RUNS


def _submitted(campaign: Campaign) -> Counter[str]:
    """How often each run was submitted."""
    return Counter(run for intent in intents_of(campaign.store).values() for task in intent["tasks"] for run in task)


def _of_one_run(campaign: Campaign) -> Campaign:
    """Its spec without teacher and all arms but the first."""
    text = campaign.spec.read_text()
    arms = text.index("[arms]")
    campaign.spec.write_text(text[: text.index("[experiment.teacher]")] + text[arms : text.index("sigmoid =")])
    return campaign


def _on_two_nodes(folder: Path, cluster: Cluster) -> Campaign:
    """A campaign of one long run, a process on each of two nodes."""
    campaign = _of_one_run(Campaign.create(folder, cluster, steps=300, profile="nodes = 2"))
    text = campaign.spec.read_text().replace("global_batch_size = 16", "global_batch_size = 16, virtual_batch_size = 8")
    campaign.spec.write_text(text)
    return campaign


def _later(campaign: Campaign, number: int) -> Victim | None:
    """An attempt at work after that of this number."""
    return next((one for one in Mischief(campaign).victims() if one.number > number), None)
