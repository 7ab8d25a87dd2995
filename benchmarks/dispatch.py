"""What sweeps cost: the head's time and calls as functions of runs, and what a job's start costs on a real SLURM.

    TMPDIR=/dev/shm python -m benchmarks.dispatch simulated --runs 1000 10000 100000
    slurm/testcluster/cluster with .venv/bin/python -m benchmarks.dispatch submission --runs 1000
    slurm/testcluster/cluster with .venv/bin/python -m benchmarks.dispatch jobs --runs 16

`simulated`: one user of 50 under a quota, on the cluster of tests/execute/simulated.py. Head time is what all cycles
together take of a processor, without what the simulated jobs do. `submission`: `harness run --detach` of runs that
wait, and `status` of them. `jobs`: the same runs by this dispatch, one and several to a job, by plain submitit's
map_array and by Hydra's submitit launcher (in build/peers/hydra, made on first use), on the same nodes: seconds from a
job's start to its first step, and training's and evaluation's share of the allocated time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

import harness
from harness.config.profile import Profile
from harness.execute.slurm import executor as sweep
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.scheduler import ArrayRequest
from harness.execute.slurm.submission_log import load
from harness.runs.folder import RunFolder
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.execute.made import complete
from tests.execute.simulated import SimulatedCluster
from tests.head.made import ablation, plan_of
from tests.slurm.campaign import ARMS, Campaign
from tests.slurm.cluster import Cluster, until

SLOTS = 100_000
PACKED = 8


def simulated(runs: int) -> None:
    """One sweep to its end."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        begun = time.process_time()
        plan = plan_of(ablation({"a": {}}, seeds=runs))
        planned = time.process_time() - begun
        in_jobs = 0.0

        def carry_out(batch: ArrayRequest, task: int) -> None:
            nonlocal in_jobs
            begun = time.process_time()
            for run in load(batch.folder).intent.tasks[task]:
                complete(plan, store, run)
            in_jobs += time.process_time() - begun

        cluster = SimulatedCluster(carry_out, slots=SLOTS, quota=10_000, max_array=1000)
        profile = Profile.model_validate({"gpus_per_task": 1, "mem_gb": 8, "partitions": ["gpu"]})
        executor = SlurmExecutor(plan, store, Settings(store=store.root), profile, cluster)
        begun, cycles = time.process_time(), 0
        while executor.progress().done < runs:
            executor.cycle()
            cycles += 1
        head = time.process_time() - begun - in_jobs
        assert set(cluster.accepted.values()) == {1}
        calls = ", ".join(f"{name} {count}" for name, count in sorted(cluster.calls.items()))
        told = f"plan {planned:.1f} s, head {head:.1f} s ({1000 * head / runs:.2f} ms a run)"
        print(f"{runs} runs: {told} in {cycles} cycles; {calls}", flush=True)  # removing the files takes long


def submission(cluster: Cluster, runs: int) -> None:
    """Submit runs that wait, look at them, cancel them."""
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign.create(Path(folder) / "campaign", cluster, seeds=-(-runs // ARMS))
        for node in ("n1", "n2", "n3"):
            cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=benchmark")
        command = ("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
        _timed(f"run --detach of {runs} runs", campaign, *command)
        jobs = len(cluster.ask("squeue", "-h", "-r", "-o", "%i").splitlines())
        print(f"{jobs} jobs wait in {len(cluster.ask('squeue', '-h', '-o', '%F').splitlines())} arrays")
        for _ in range(3):
            _timed(f"status of {runs} runs", campaign, "status", campaign.spec.name)
        _timed(f"cancel of {runs} runs", campaign, "cancel", campaign.spec.name)


def _timed(what: str, campaign: Campaign, *command: str) -> None:
    begun, before = time.perf_counter(), os.times()
    ended = campaign.command(*command)
    wall, after = time.perf_counter() - begun, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    assert ended.returncode == 0, ended.stderr + ended.stdout
    print(f"{what}: {wall:.2f} s, of which {busy:.2f} s on a processor", flush=True)


def jobs(cluster: Cluster, runs: int) -> None:
    """The same runs by this dispatch and by plain submitit."""
    for pack in (1, PACKED):
        with tempfile.TemporaryDirectory() as folder:
            campaign = _alone(Path(folder), cluster, runs, pack)
            campaign.finish()
            _starts(f"harness, {pack} run{'s'[: pack > 1]} a job", cluster, campaign.runs())
    for name, peer in {"submitit map_array": _map_array, "Hydra's submitit launcher": _hydra}.items():
        with tempfile.TemporaryDirectory() as folder:
            folders = _prepared(Path(folder), cluster, runs)
            peer(cluster, Path(folder), folders)
            _starts(f"{name}, 1 run a job", cluster, folders)


def _prepared(folder: Path, cluster: Cluster, runs: int) -> list[RunFolder]:
    """Run folders as the dispatch leaves them to nodes, without its jobs."""
    campaign = _alone(folder, cluster, runs, 1)
    for node in ("n1", "n2", "n3"):
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=benchmark")
    ended = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    assert ended.returncode == 0, ended.stderr
    cluster.tidy()
    for one in campaign.runs():
        request = json.loads(one.request.read_text()) | {"submission": "", "phase": "run"}
        one.request.write_text(json.dumps(request))
    return campaign.runs()


def _alone(folder: Path, cluster: Cluster, runs: int, pack: int) -> Campaign:
    """A campaign without mining, so without a teacher that others wait for."""
    campaign = Campaign.create(folder / "campaign", cluster, seeds=-(-runs // 3), pack=pack, parallelism=2)
    text = campaign.spec.read_text()
    campaign.spec.write_text(
        text[: text.index("[experiment.teacher]")] + text[text.index("[arms]") : text.index("[arms.fff]")]
    )
    return campaign


def _map_array(cluster: Cluster, folder: Path, folders: Iterable[RunFolder]) -> None:
    """What a researcher would write without the harness's dispatch."""
    code = (
        "import sys, submitit; from pathlib import Path; from harness import worker\n"
        "executor = submitit.SlurmExecutor(sys.argv[1])\n"
        "executor.update_parameters(partition='main', cpus_per_task=1, mem='2G', time=5, array_parallelism=2)\n"
        "for job in executor.map_array(worker.main, [Path(name) for name in sys.argv[2:]]): job.result()\n"
    )
    command = [sys.executable, "-c", code, str(folder / "submitit"), *(str(one.path) for one in folders)]
    environment = cluster.environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


HYDRA = """
import hydra
from pathlib import Path

@hydra.main(version_base=None, config_path=None)
def main(config):
    from harness import worker
    worker.main(Path(config.run))

main()
"""


def _hydra(cluster: Cluster, folder: Path, folders: Iterable[RunFolder]) -> None:
    """What a researcher would write with Hydra: a multirun over the run folders."""
    (folder / "app.py").write_text(HYDRA)
    launcher = {"partition": "main", "cpus_per_task": 1, "mem_gb": 2, "timeout_min": 5, "array_parallelism": 2}
    options = [f"hydra.launcher.{name}={value}" for name, value in launcher.items()]
    over = [f"hydra.sweep.dir={folder / 'multirun'}", f"+run={','.join(str(one.path) for one in folders)}"]
    command = [str(_hydra_python()), str(folder / "app.py"), "-m", "hydra/launcher=submitit_slurm", *options, *over]
    environment = cluster.environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, cwd=folder, stdout=subprocess.DEVNULL)


def _hydra_python() -> Path:
    """Python with Hydra's launcher, in an environment of its own that sees this one's packages too."""
    place = Path("build/peers/hydra").resolve()
    python = place / "bin/python"
    if not (place / "made").exists():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, "hydra-core==1.3.8", "hydra-submitit-launcher==1.2.0"], check=True)
        packages = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        ours = Path(torch.__file__).parent.parent
        (packages / "ours.pth").write_text(f"{ours}\n{Path(harness.__file__).parent.parent}\n")
        (place / "made").touch()
    return python


def _starts(name: str, cluster: Cluster, folders: Iterable[RunFolder]) -> None:
    """Print how long jobs took to their first step, and what share of their time was training and evaluation."""
    first: dict[str, float] = {}
    busy = 0.0
    for folder in folders:
        attempt = folder.attempts.all()[-1].start
        begun = folder.step_metrics()[0].time
        first[attempt.job] = min(first.get(attempt.job, begun), begun)
        cost = folder.record().cost
        busy += cost.duration_s + cost.evaluation_s
    arrays = ",".join({job.partition("_")[0] for job in first})
    allocated = until(lambda: _allocated(cluster, arrays, len(first)), "the accounts")
    starts = [first[job] - allocated[job][0] for job in first]
    held = sum(end - start for start, end in allocated.values())
    median = statistics.median(starts)
    print(
        f"{name}: {len(first)} jobs, first step after {median:.1f} s (median), busy {100 * busy / held:.0f} %",
        flush=True,
    )


def _allocated(cluster: Cluster, arrays: str, expected: int) -> dict[str, tuple[float, float]]:
    """Start and end of each job by the accounts; nothing before all have ended."""
    command = ["sacct", "-n", "-X", "-P", "-j", arrays, "-o", "JobID,Start,End"]
    environment = cluster.environment | {"SLURM_TIME_FORMAT": "%s"}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows = [line.split("|") for line in listed.splitlines()]
    found = {job: (float(start), float(end)) for job, start, end in rows if start.isdecimal() and end.isdecimal()}
    return found if len(found) == expected else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulated", "submission", "jobs"])
    parser.add_argument("--runs", type=int, nargs="+", default=[1000])
    given = parser.parse_args()
    if given.what == "simulated":
        sweep.FASTEST_S = 0.0
        for runs in given.runs:
            simulated(runs)
        return
    cluster = Cluster(Path(os.environ["SLURM_CONF"]).parent)
    cluster.tidy()
    (submission if given.what == "submission" else jobs)(cluster, given.runs[0])
    cluster.tidy()


if __name__ == "__main__":
    main()
