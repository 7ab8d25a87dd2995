"""How busy a search keeps its workers on a real SLURM, against an ideal schedule and a driver that works in batches.

    slurm/testcluster/cluster with .venv/bin/python -m benchmarks.search_busy [--trials 24]

Trials of three lengths, four workers. `search`: `harness search` fills a place as soon as it is free. `batches`: the
same configurations, four submitted at a time, and all waited for, as hydra's Optuna sweeper does. A worker is busy from
the start of a job by SLURM's accounts to the moment at which its run is done; the ideal schedule gives every trial,
with the time that it took, to the first free worker without a gap.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.config.load import load_search
from harness.execute.run import one_by_one, prepare_data
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store
from harness.searching.study import Trial
from harness.searching.winner import as_ablation
from tests.slurm.cluster import Cluster, until
from tests.slurm.searching import WORKERS, Hunt, tried

SEARCH = """
question = "How busy are the workers?"
experiment = "base.toml"
finish = 1
[space]
"train.duration" = {{ kind = "choice", of = ["50 steps", "150 steps", "300 steps"] }}
"train.optimiser.lr" = {{ kind = "float", low = 1e-4, high = 1e-1, log = true }}
[[objectives]]
metric = "shapes/acc1"
[budget]
trials = {trials}
[sampler]
kind = "random"
"""
BASE = """
data = { kind = "shapes", train_samples = 96, test_samples = 36 }
model = { name = "small", config = "model.json" }
train = { duration = "50 steps", global_batch_size = 16, schedule = "constant" }
evaluation = { sets = ["shapes"], templates = ["a photo of a {c}"] }
"""


def search(cluster: Cluster, folder: Path, trials: int) -> list[Trial]:
    """Our driver; returns what it has tried."""
    hunt = Hunt.create(folder / "campaign", cluster, seeds=trials, parallelism=WORKERS)
    hunt.spec.write_text(SEARCH.format(trials=trials))
    (hunt.folder / "base.toml").write_text(BASE)
    assert hunt.head().wait() == 0, hunt.log
    found = tried(hunt.driver())
    tell("search", cluster, hunt.store)
    return found


def batches(cluster: Cluster, folder: Path, trials: Sequence[Trial]) -> None:
    """The same trials, as many as there are workers at a time, all of which are waited for."""
    store = Store(folder / "batches")
    project = Project(Settings(store=store.root, tracking_uri="none"), store)
    spec = load_search(folder / "campaign/search.toml")
    executor = one_by_one(project, str(folder / "campaign/profile.toml"), WORKERS)
    for first in range(0, len(trials), WORKERS):
        plan = project.plan(as_ablation(spec, trials[first : first + WORKERS]), name="batches")
        prepare_data(plan, store)
        for _ in executor(plan).run():
            pass
    tell("batches", cluster, store)


def tell(name: str, cluster: Cluster, store: Store) -> None:
    """Print how busy the workers were, and how long an ideal schedule of the same trials is."""
    times = sorted(occupied(cluster, store))
    length = max(end for _, end in times) - times[0][0]
    busy = sum(end - start for start, end in times)
    ideal = scheduled([end - start for start, end in times])
    print(
        f"{name}: {len(times)} trials of {min(e - s for s, e in times):.0f} to {max(e - s for s, e in times):.0f} s in "
        f"{length:.0f} s; {WORKERS} workers busy {busy / length / WORKERS:.0%} of it, in an ideal schedule "
        f"({ideal:.0f} s) {busy / ideal / WORKERS:.0%}: {ideal / length:.0%} of the ideal",
        flush=True,
    )


def occupied(cluster: Cluster, store: Store) -> list[tuple[float, float]]:
    """When each trial had its worker: from the start of its job to its record, in whole seconds as accounts have."""
    jobs = {folder.attempts.all()[-1].start.job: math.floor(folder.record().ended_at) for folder in store.runs()}
    starts = until(lambda: _starts(cluster, set(jobs)), "the accounts")
    return [(starts[job], end) for job, end in jobs.items()]


def _starts(cluster: Cluster, jobs: set[str]) -> dict[str, float]:
    arrays = ",".join({job.partition("_")[0] for job in jobs})
    command = ["sacct", "-n", "-X", "-P", "-j", arrays, "-o", "JobID,Start"]
    environment = cluster.environment | {"SLURM_TIME_FORMAT": "%s"}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found = {job: start for job, start in (line.split("|") for line in listed.splitlines()) if start.isdecimal()}
    return {job: float(found[job]) for job in jobs} if jobs <= found.keys() else {}


def scheduled(durations: Sequence[float]) -> float:
    """Length of a schedule that gives each trial to the first free worker at once."""
    free = [0.0] * WORKERS
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    given = parser.parse_args()
    cluster = Cluster(Path(os.environ["SLURM_CONF"]).parent)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cluster.tidy()
        trials = search(cluster, Path(folder), given.trials)
        cluster.tidy()
        batches(cluster, Path(folder), trials)


if __name__ == "__main__":
    main()
