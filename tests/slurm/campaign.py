"""A real ablation of very short runs, carried out on the test cluster, and what has to hold once it has ended."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from harness.runs.folder import RunFolder
from harness.runs.store import Store
from tests.node.small import CONFIG, TIMINGS
from tests.slurm.cluster import Cluster

ARMS = 4
ABLATION = """
question = "Does every run end once?"
baseline = "clip"
primary = "shapes/acc1"
seeds = {seeds}
[experiment]
data = {{ kind = "shapes", train_samples = 96, test_samples = 36 }}
model = {{ name = "small", config = "model.json" }}
train = {{ duration = "{steps} steps", global_batch_size = 16 }}
evaluation = {{ sets = {sets}, templates = ["a photo of a {{c}}"] }}
resources = {{ checkpoint_every_s = 0.5, log_every = 5 }}
[experiment.teacher]
path = "teacher.toml"
[arms]
clip = {{}}
sigmoid = {{ loss = {{ kind = "multi_positive_sigmoid" }} }}
[arms.captions]
captions = {{ source = "captioner", count = 3 }}
loss = {{ kind = "multi_positive_sigmoid" }}
[arms.fff]
captions = {{ source = "captioner", count = 3 }}
loss = {{ kind = "multi_positive_sigmoid" }}
mining = {{ kind = "threshold", image_text = {{ quantile = 0.95 }}, image_image = {{ quantile = 0.95 }} }}
"""
TEACHER = """
data = { kind = "shapes", train_samples = 96, test_samples = 36 }
captions = { source = "captioner", count = 3, mixing = "sample" }
model = { name = "small", config = "model.json" }
train = { duration = "40 steps", global_batch_size = 16 }
resources = { checkpoint_every_s = 0.5 }
"""
PROFILE = """
partitions = ["main"]
cpus_per_task = 1
mem_gb = 2
time_limit_min = 5
grace_s = 10
array_parallelism = {parallelism}
pack = {pack}
[retry]
attempts = 12 # faults come thick and fast here
"""
STAGE = """
[evaluation]
partitions = ["cheap"]
mem_gb = 2
time_limit_min = 5
"""
SBATCH = """#!/bin/sh
# Once for each time that it is armed: the job is accepted, and the answer is lost, or the command is killed around it.
if ! mv "{armed}" "{armed}.fired.$$" 2>/dev/null; then exec "{sbatch}" "$@"; fi
how=$(cat "{armed}.fired.$$")
if [ "$how" = before ]; then kill -9 $(cat "{folder}/head.pid"); exit 1; fi
"{sbatch}" "$@" >> "{armed}.accepted"
if [ "$how" = after ]; then kill -9 $(cat "{folder}/head.pid"); fi
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""


@dataclass
class Campaign:
    """The files of an ablation of 4 arms x `seeds` runs and a teacher, its store on the cluster, and its reference."""

    folder: Path
    cluster: Cluster
    steps: int
    seeds: int = 0
    straight: Path | None = None
    """A store with the same runs undisturbed, where another campaign has made it."""
    sets: tuple[str, ...] = ("shapes",)
    verb: ClassVar[str] = "run"
    stem: ClassVar[str] = "ablation"

    @classmethod
    def create(
        cls,
        folder: Path,
        cluster: Cluster,
        *,
        seeds: int = 1,
        steps: int = 40,
        pack: int = 1,
        parallelism: int = 2,
        profile: str = "",
        staged: bool = False,
    ) -> Self:
        """Write the files.

        Args:
            profile: lines before the profile's own, in place of those of the same key.
            staged: evaluate in jobs of their own, in another partition.
        """
        (folder / "bin").mkdir(parents=True)
        made = cls(folder, cluster, steps)
        made.grow(seeds)
        (folder / "teacher.toml").write_text(TEACHER)
        (folder / "model.json").write_text(json.dumps(CONFIG))
        given = {line.partition(" =")[0] for line in profile.splitlines()}
        own = PROFILE.format(pack=pack, parallelism=parallelism).splitlines()
        kept = [line for line in own if line.partition(" =")[0] not in given]
        made.profile.write_text("\n".join([*profile.splitlines(), *kept, STAGE if staged else ""]))
        sbatch = folder / "bin/sbatch"
        sbatch.write_text(SBATCH.format(armed=made.armed, folder=folder, sbatch=shutil.which("sbatch")))
        sbatch.chmod(0o755)
        return made

    def grow(self, seeds: int) -> None:
        """Ask for so many more runs of each arm."""
        self.seeds += seeds
        self._write()

    def add_set(self) -> None:
        """Ask for one more evaluation set of every run."""
        self.sets = ("shapes", "shapes_retrieval")
        self._write()

    def _write(self) -> None:
        self.spec.write_text(ABLATION.format(seeds=self.seeds, steps=self.steps, sets=json.dumps(self.sets)))

    @property
    def spec(self) -> Path:
        return self.folder / f"{self.stem}.toml"

    @property
    def profile(self) -> Path:
        return self.folder / "profile.toml"

    @property
    def armed(self) -> Path:
        """While this file is there, the next sbatch accepts and answers with an error."""
        return self.folder / "armed"

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def reference(self) -> Store:
        return Store(self.straight or self.folder / "reference")

    def environment(self, store: Store) -> dict[str, str]:
        """The variables of a command of the harness."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        own = {"HARNESS_STORE": str(store.root), "HARNESS_TRACKING_URI": "none", "OMP_NUM_THREADS": "1", "PATH": path}
        return self.cluster.environment | own

    def command(self, *arguments: str, store: Store | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of the harness to its end."""
        words = [sys.executable, "-m", "harness", *arguments]
        environment = self.environment(store or self.store)
        return subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )

    def head(self, *options: str) -> subprocess.Popen[bytes]:
        """Start `harness run` (or its verb) on the cluster; its words are added to head.log."""
        words = [sys.executable, "-m", "harness", self.verb, self.spec.name, "--on", self.profile.name, *options]
        with (self.folder / "head.log").open("ab") as log:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self.environment(self.store), stdout=log, stderr=log, start_new_session=True
            )
        (self.folder / "head.pid").write_text(str(process.pid))
        return process

    @property
    def log(self) -> str:
        """What the head processes said."""
        file = self.folder / "head.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def finish(self, *options: str, status: int = 0) -> str:
        """Carry it out to the end; returns what the head said."""
        process = self.head(*options)
        try:
            assert process.wait(timeout=900) == status, self.log
        finally:
            process.kill()
        return self.log

    def carry_out_reference(self) -> None:
        """The same ablation undisturbed, by processes of this machine with one thread each."""
        jobs = str(len(os.sched_getaffinity(0)))
        ended = self.command("run", self.spec.name, "--on", "local", "--jobs", jobs, store=self.reference)
        assert ended.returncode == 0, ended.stderr + ended.stdout

    def runs(self) -> list[RunFolder]:
        """The run folders that there are."""
        return self.store.runs()

    def targets(self) -> list[RunFolder]:
        """Those that faults may strike."""
        return self.runs()


def result(folder: RunFolder) -> dict[str, Any]:
    """Everything of a run that must not depend on what happened on the way."""
    return {
        "metrics": [
            {name: value for name, value in line.values.items() if name not in TIMINGS} | {"step": line.step}
            for line in folder.step_metrics()
        ],
        "evaluations": sorted(folder.record().evaluations, key=lambda one: one.set),
        "weights": {
            name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            for name, tensor in torch.load(folder.weights, weights_only=True)["state_dict"].items()
        },
    }


def check_results(campaign: Campaign) -> int:
    """Every run is done, bit for bit as in the reference; returns how many there are."""
    expected = {folder.id: folder for folder in campaign.reference.runs()}
    assert {folder.id for folder in campaign.runs()} == set(expected)
    for folder in campaign.runs():
        assert folder.record_file.exists(), f"run {folder.id} has not ended: {folder.path}"
        found, straight = result(folder), result(expected[folder.id])
        different = [part for part in found if found[part] != straight[part]]
        assert not different, f"run {folder.id} differs in {different}: {folder.path} {expected[folder.id].path}"
    return len(expected)


def check_attempts(campaign: Campaign) -> Counter[str]:
    """Every attempt has its cause, and each job that a run needs completed once; returns how often each cause is there.

    A run needs a job for its training, one for its evaluation where that is a stage, and one for sets added later.
    """
    causes: Counter[str] = Counter()
    most = 1 + (STAGE in campaign.profile.read_text()) + (len(campaign.sets) > 1)
    for folder in campaign.runs():
        attempts = folder.attempts.all()
        own = [attempt.end.cause if attempt.end else "" for attempt in attempts]
        assert all(own), f"run {folder.id} has attempts without a cause: {own}"
        assert 1 <= own.count("completed") <= most, f"run {folder.id} completed {own.count('completed')} times: {own}"
        causes.update(own)
    return causes


@dataclass(frozen=True)
class Allocation:
    """A job as sacct tells: from its first submission to its last end."""

    job: str
    name: str
    submitted: float
    ended: float


def accounted(cluster: Cluster) -> list[Allocation]:
    """All jobs since the cluster is up, one line for each job of an array, its executions together."""
    command = ["sacct", "-n", "-X", "-P", "-D", "-S", "now-2days", "-o", "JobID,JobName,Submit,End"]
    environment = cluster.environment | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: dict[str, Allocation] = {}
    for line in listed.splitlines():
        job, name, submitted, ended = line.split("|")
        end = float(ended) if ended.isdecimal() else time.time()
        one = found.get(job, Allocation(job, name, float(submitted), end))
        found[job] = Allocation(job, name, min(one.submitted, float(submitted)), max(one.ended, end))
    return list(found.values())


def check_submissions(campaign: Campaign) -> int:
    """Each intent was submitted at most once, and none of a run's jobs came before the one before had ended.

    The job that evaluates a run may come before the one that trains it has ended: it depends on it.

    Returns:
        the number of arrays that SLURM has accepted.
    """
    intents = intents_of(campaign.store)
    allocations = [one for one in accounted(campaign.cluster) if one.name in intents]
    arrays = {(one.name, one.job.partition("_")[0]) for one in allocations}
    doubled = [name for name, count in Counter(name for name, _ in arrays).items() if count > 1]
    assert not doubled, f"submitted twice: {doubled}"
    jobs: dict[tuple[str, str], list[Allocation]] = {}
    for one in allocations:
        _array, _, task = one.job.partition("_")
        for run in _runs_of(intents[one.name], task):
            jobs.setdefault((run, intents[one.name]["phase"]), []).append(one)
    for (run, _phase), some in jobs.items():
        ordered = sorted(some, key=lambda one: one.submitted)
        for before, after in itertools.pairwise(ordered):
            assert before.ended <= after.submitted + 1, f"run {run} was in two jobs at a time: {before}, {after}"
    return len(arrays)


def intents_of(store: Store) -> dict[str, Mapping[str, Any]]:
    """What was ever to be submitted, by its name in SLURM."""
    files = sorted((store.root / "submissions").glob("*/intent.json"))
    return {(intent := json.loads(file.read_text()))["name"]: intent for file in files}


def _runs_of(intent: Mapping[str, Any], task: str) -> Iterable[str]:
    if task.isdecimal():
        return tuple(intent["tasks"][int(task)])
    return [run for runs in intent["tasks"] for run in runs]  # an array that was cancelled before it was split
