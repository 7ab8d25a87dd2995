"""An array that the old code has queued: the current code finds it, waits for it, and submits nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.before.old import JOBS, SPECS, Harness, assert_same_results, installed, runs, unpack
from tests.slurm.cluster import Cluster, until

NODES = ("n1", "n2", "n3")
PROFILE = """
partitions = ["main"]
cpus_per_task = 1
mem_gb = 2
time_limit_min = 10
grace_s = 10
pack = 5
"""


def submissions(store: Path) -> dict[str, dict[str, object]]:
    """What was ever to be submitted, by its name in SLURM."""
    files = sorted((store / "submissions").glob("*/intent.json"))
    return {intent["name"]: intent for intent in (json.loads(file.read_text()) for file in files)}


def arrays(cluster: Cluster, store: Path) -> set[tuple[str, str]]:
    """Name and id of every array of this store that SLURM has accepted, also of those that ended."""
    lines = cluster.ask("sacct", "-n", "-X", "-P", "-S", "now-2days", "-o", "JobName,JobID").splitlines()
    found = {(name, job.partition("_")[0]) for name, job in (line.split("|") for line in lines)}
    return {(name, job) for name, job in found if name in submissions(store)}


@pytest.mark.slurm
def test_an_array_that_the_old_code_queued_ends_under_the_current_code(cluster: Cluster, tmp_path: Path) -> None:
    old, current = unpack(tmp_path / "old"), installed()
    straight, store, profile = tmp_path / "straight", tmp_path / "store", tmp_path / "profile.toml"
    old.command(straight, "run", "ablation.toml", "--jobs", JOBS)
    profile.write_text(PROFILE)
    for node in NODES:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=before")
    on_cluster(cluster, old, store, "run", "ablation.toml", "--on", str(profile), "--detach")
    queued = submissions(store)
    accepted = {tuple(line.split("|")) for line in cluster.ask("squeue", "-h", "-o", "%j|%F").splitlines()}
    assert {name for name, _ in accepted} == set(queued)
    assert not any((folder / "metrics.jsonl").exists() for folder in runs(store).values())

    told = on_cluster(cluster, current, store, "status", "ablation.toml")
    assert told.count("pending") >= len(runs(straight)), told
    again = on_cluster(cluster, current, store, "run", "ablation.toml", "--on", str(profile), "--detach")
    assert "5 pending in the queue" in again
    log = tmp_path / "head.log"
    with log.open("wb") as stream:
        head = start(cluster, current, store, stream.fileno(), "run", "ablation.toml", "--on", str(profile))
    try:
        until(lambda: "5 pending in the queue" in log.read_text(), log.read_text)
        for node in NODES:
            cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        assert head.wait(timeout=900) == 0, log.read_text()
    finally:
        head.kill()
        head.wait()

    assert submissions(store) == queued, "the current code submitted runs that were queued"
    # sacct lists an array that waits for another one only once it may start, so the arrays are compared at the end.
    until(lambda: arrays(cluster, store) >= accepted, "all arrays in sacct")
    assert arrays(cluster, store) == accepted
    assert_same_results(store, straight)
    for folder in runs(store).values():
        record = json.loads((folder / "record.json").read_text())
        assert record["attempts"] == 1


def start(cluster: Cluster, harness: Harness, store: Path, output: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a command that talks to the cluster."""
    words = [sys.executable, "-m", "harness", *arguments]
    environment = environment_of(cluster, harness, store)
    return subprocess.Popen(words, cwd=SPECS, env=environment, stdout=output, stderr=output)


def on_cluster(cluster: Cluster, harness: Harness, store: Path, *arguments: str) -> str:
    """Run a command that talks to the cluster to its end; returns what it printed."""
    words = [sys.executable, "-m", "harness", *arguments]
    environment = environment_of(cluster, harness, store)
    ended = subprocess.run(words, cwd=SPECS, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def environment_of(cluster: Cluster, harness: Harness, store: Path) -> dict[str, str]:
    """The variables of a command that talks to the cluster."""
    return harness.environment(store) | {"SLURM_CONF": cluster.environment["SLURM_CONF"]}
