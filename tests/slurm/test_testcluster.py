"""The test cluster is a real one: it gives out GPUs, and every way in which a job can end happens on it."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, control, statuses, until

pytestmark = pytest.mark.slurm
WAITING = "for i in $(seq 600); do sleep 0.5; done"
SIGNALLED = f"trap 'echo asked' USR2; echo started; {WAITING}"
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


def test_jobs_get_gpus_of_their_own(cluster: Cluster, tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES > $SLURM_ARRAY_TASK_ID; sleep 4"
    job = cluster.submit(script, "--array=0-4", "--gres=gpu:1", f"--chdir={tmp_path}")
    until(lambda: cluster.states(job).count("RUNNING") == 4, "four jobs on four GPUs")
    assert cluster.states(job).count("PENDING") == 1
    assert cluster.wait(job, *ENDED) == ["COMPLETED"] * 5
    assert {(tmp_path / str(task)).read_text().strip() for task in range(5)} == {"0", "1"}
    until(lambda: cluster.accounted(job) == ["COMPLETED"] * 5, "the accounts")
    assert "gres/gpu" in cluster.ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "AllocTRES").replace(":tiny", "")


def test_more_gpus_than_a_node_has_are_refused(cluster: Cluster) -> None:
    said = cluster.ask("sbatch", "--gres=gpu:3", "--nodes=1", "--wrap=true", check=False)
    assert "Requested node configuration is not available" in said


def test_unknown_partition_and_account_are_refused(cluster: Cluster) -> None:
    assert "invalid partition" in cluster.ask("sbatch", "-p", "nowhere", "--wrap=true", check=False)
    assert "Invalid account" in cluster.ask("sbatch", "-A", "nobody", "--wrap=true", check=False)


def test_a_quota_holds_jobs_back(cluster: Cluster) -> None:
    cluster.submit("sleep 60", "--qos=few", "--array=0-4")
    said = cluster.ask("sbatch", "--qos=few", "--wrap=true", check=False)
    assert "submit limit" in said


def test_an_urgent_job_preempts_and_the_other_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    where = ("-w", "n3", "--exclusive", "-t", "5")
    job = cluster.submit(
        SIGNALLED, *where, "--requeue", "--signal=B:USR2@60", "--open-mode=append", f"--output={output}"
    )
    cluster.wait(job, "RUNNING")
    until(lambda: output.exists() and "started" in output.read_text(), "the job's first words")
    urgent = cluster.submit("sleep 1", *where, "-p", "urgent")
    assert cluster.wait(urgent, *ENDED) == ["COMPLETED"]
    until(lambda: output.read_text().count("started") == 2, "a second start")
    assert "asked" in output.read_text().splitlines()
    assert cluster.accounted(job)[0] in ("PREEMPTED", "REQUEUED")
    assert "Restarts=1" in cluster.ask("scontrol", "show", "job", job)


def test_a_time_limit_ends_a_job(cluster: Cluster) -> None:
    job = cluster.submit(WAITING, "-t", "5")
    cluster.wait(job, "RUNNING")
    end = datetime.now() + timedelta(seconds=5)
    cluster.ask("scontrol", "update", f"JobId={job}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
    assert cluster.wait(job, *ENDED) == ["TIMEOUT"]


def test_a_requeued_job_starts_again_under_its_number(cluster: Cluster) -> None:
    job = cluster.submit(WAITING, "--requeue")
    cluster.wait(job, "RUNNING")
    cluster.ask("scontrol", "requeue", job)
    cluster.wait(job, "PENDING")
    cluster.wait(job, "RUNNING")
    assert until(lambda: cluster.accounted(job) == ["REQUEUED", "RUNNING"], "two executions in the accounts")


def test_a_job_of_a_dead_node_lives_on_beside_its_successor(cluster: Cluster, tmp_path: Path) -> None:
    script = f"echo $$ $SLURMD_NODENAME >> {tmp_path}/pids; {WAITING}"
    job = cluster.submit(script, "--requeue", "--exclude=n3")
    until(lambda: (tmp_path / "pids").exists(), "a start")
    node = (tmp_path / "pids").read_text().split()[1]
    cluster.daemon("kill", node)
    starts = until(lambda: pids(tmp_path) if len(pids(tmp_path)) == 2 else [], "a start elsewhere")
    assert starts[0][1] != starts[1][1]
    assert all(is_alive(int(pid)) for pid, _ in starts), "two attempts at a time"
    assert cluster.accounted(job)[0] == "NODE_FAIL"
    cluster.daemon("start", node)
    until(lambda: not is_alive(int(starts[0][0])), "the returned node to end what it should not run")


def pids(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "pids").read_text().splitlines()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_too_much_memory_ends_a_job(cluster: Cluster) -> None:
    hungry = 'import time; held = bytearray(400_000_000); held[::4096] = b"x" * len(held[::4096]); time.sleep(60)'
    job = cluster.submit(f"srun python3 -c '{hungry}'", "--mem=100M")
    assert cluster.wait(job, *ENDED) != ["COMPLETED"]
    assert "CANCELLED" in cluster.ask("sacct", "-n", "-P", "-j", job, "-o", "State") or cluster.accounted(job)


def test_jobs_survive_the_death_of_the_controller(cluster: Cluster) -> None:
    job = cluster.submit("sleep 40")
    cluster.wait(job, "RUNNING")
    cluster.save(job)  # a controller that had forgotten the start would start it again
    cluster.daemon("kill", "slurmctld")
    assert "Unable to contact" in cluster.ask("timeout", "20", "squeue", check=False)
    cluster.daemon("start", "slurmctld")
    assert cluster.wait(job, *ENDED) == ["COMPLETED"]
    assert "Restarts=0" in cluster.ask("scontrol", "show", "job", job)


def test_accounts_are_caught_up_after_slurmdbd_was_away(cluster: Cluster) -> None:
    cluster.daemon("stop", "slurmdbd")
    job = cluster.submit("true")
    assert cluster.wait(job, *ENDED) == ["COMPLETED"]
    assert "error" in cluster.ask("sacct", "-j", job, check=False)
    cluster.daemon("start", "slurmdbd")
    until(lambda: cluster.accounted(job) == ["COMPLETED"], "the accounts")


def test_without_accounting_jobs_are_soon_forgotten(without_accounting: Cluster) -> None:
    job = without_accounting.submit("true")
    assert without_accounting.wait(job, *ENDED) == ["COMPLETED"]
    assert "accounting storage is disabled" in without_accounting.ask("sacct", "-j", job, check=False)
    until(lambda: not without_accounting.states(job), "the job to be forgotten")


def test_down_ends_everything_that_it_started_and_nothing_else(tmp_path: Path) -> None:
    bystander = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "300")
    control(tmp_path, "up", "--no-accounting")
    mine = Cluster(tmp_path)
    mine.submit(f"echo $$ orphan >> {tmp_path}/pids; {WAITING}")
    until(lambda: (tmp_path / "pids").exists(), "a start")
    daemons = [int(pid) for pid in statuses(tmp_path).values()]
    job = int(pids(tmp_path)[0][0])
    control(tmp_path, "up")  # is up already: changes nothing
    assert all(is_alive(pid) for pid in (*daemons, job))
    control(tmp_path, "down")
    time.sleep(0.5)
    assert not any(is_alive(pid) for pid in (*daemons, job))
    assert is_alive(bystander)
    os.kill(bystander, signal.SIGKILL)
    control(tmp_path, "down")  # there is nothing left


def test_missing_packages_are_named(tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(sys.executable)
    ended = control(tmp_path / "cluster", "up", path=f"{tmp_path}:/nowhere")
    assert ended.returncode != 0
    assert ended.stderr.strip().endswith("this machine lacks SLURM's daemons: apt-get install mariadb-server slurm-wlm")
