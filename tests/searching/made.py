"""A small search, and workers that make up curves instead of training: an evaluation for every look."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness.config.experiment import Experiment
from harness.config.profile import Profile
from harness.config.search import Search
from harness.data.synthetic.materialise import materialise
from harness.execute.local.executor import LocalExecutor
from harness.execute.local.processes import Ended
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.scheduler import Job
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.record import Cost, DataReport, EvaluationResult, Record
from harness.runs.request import evaluation_key, read_request
from harness.searching.driver import Driver, Snapshot
from harness.searching.study import Trial
from tests.execute.made import MadeScheduler, attempted
from tests.node.small import experiment, project

STEPS, EVERY = 8, 1
LR, SHARE = "train.optimiser.lr", "train.optimiser.beta1"


STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {},
    "quasi_random": {"sampler": {"kind": "quasi_random"}},
    "tpe": {"sampler": {"kind": "tpe", "startup": 3}},
    "gp": {"sampler": {"kind": "gp", "startup": 3}},
    "cma_es": {"sampler": {"kind": "cma_es"}},
    "nsga2": {"sampler": {"kind": "nsga2", "population": 4}},
    "median": {"pruner": {"kind": "median", "startup": 2, "warmup": 1}},
    "percentile": {"pruner": {"kind": "percentile", "startup": 2, "warmup": 1}},
    "asha": {"pruner": {"kind": "asha"}},
    "hyperband": {"pruner": {"kind": "hyperband"}},
    "patience": {"pruner": {"kind": "patience", "patience": 1, "min_delta": 0.2}},
    "fastbo": {"sampler": {"kind": "gp", "startup": 3}, "pruner": {"kind": "fastbo", "efficient_below": 0.1}},
    "ladder": {"sampler": {"kind": "gp", "startup": 3}, "pruner": {"kind": "ladder", "first_rung": 1}},
}


def search(**changes: Any) -> Search:
    """Two fields of a run of eight evaluations."""
    base = experiment(
        evaluation={"sets": ["shapes"], "every": f"{EVERY} steps"},
        train={"duration": f"{STEPS} steps", "global_batch_size": 16, "schedule": "constant"},
    )
    table: dict[str, Any] = {
        "question": "Which learning rate?",
        "experiment": base,
        "space": {
            LR: {"kind": "float", "low": 1e-4, "high": 1e-1, "log": True},
            SHARE: {"kind": "float", "low": 0.5, "high": 0.95},
        },
        "objectives": [{"metric": "shapes/acc1"}],
        "budget": {"trials": 12},
        "sampler": {"kind": "random"},
        "finish": 1,
    }
    return Search.model_validate(table | changes)


def truth(one: Experiment, step: int) -> float:
    """The accuracy of a made run after `step`: best near a learning rate of 0.01 and a beta1 of 0.8."""
    rate, beta = one.train.optimiser.lr, one.train.optimiser.beta1
    best = 0.9 - 0.1 * abs(rate - 0.01) / 0.01 - abs(beta - 0.8)
    return max(best - 0.5 * 0.6**step, 0.01)


class MadeWorkers:
    """Every run takes one evaluation further at each look; pauses and stops are minded as the trainer minds them."""

    def __init__(self, jobs: int = 3, deaths: set[int] | None = None) -> None:
        self.jobs, self.threads = jobs, 1
        self._running: list[RunFolder] = []
        self._deaths = deaths or set()
        """Looks at which the first running process dies without a word."""
        self._looks = 0
        self.started: list[str] = []

    def start(self, folder: Path) -> None:
        self._running.append(RunFolder(folder))
        self.started.append(folder.name)

    def ended(self, timeout_s: float) -> list[Ended]:
        self._looks += 1
        if self._looks in self._deaths and self._running:
            return [Ended(self._running.pop(0).id, -9)]
        over = [folder for folder in self._running if advance(folder)]
        self._running = [folder for folder in self._running if folder not in over]
        return [Ended(folder.id, 0) for folder in over]

    def stop(self) -> None:
        self._running.clear()

    def close(self) -> None:
        self._running.clear()


@dataclass
class MadeCluster(MadeScheduler):
    """A job begins at one look at the queue, and at each further one its run takes one evaluation further."""

    deaths: set[int] = field(default_factory=set)
    """Looks at which the node of the first running job dies."""
    looks: int = 0

    def queue(self) -> Sequence[Job]:
        self.looks += 1
        living = [job for job in self.jobs.values() if job.phase != "ended"]
        for job in living:
            if job.phase == "pending":
                self.run(job.id)
            elif self.looks in self.deaths and job.id == living[0].id:
                attempted(self._folder(job), job.id)
                self.end(job.id, "NODE_FAIL")
            elif advance(self._folder(job)):
                attempted(self._folder(job), job.id, "completed", step=int(self._folder(job).read_progress()["step"]))
                self.end(job.id, "COMPLETED")
        return super().queue()

    def _folder(self, job: Job) -> RunFolder:
        (run,) = self.runs_of(job.id)
        return RunFolder(self.batches[job.id.partition("_")[0]].folder.parents[1] / "runs" / run)

    def jobs_of(self, run: str) -> list[str]:
        return [job for job in self.jobs if run in self.runs_of(job)]


def advance(folder: RunFolder) -> bool:
    """One evaluation further; whether the run is over, or paused where it was to."""
    one = read_request(folder).experiment
    steps = int(str(one.train.duration).split()[0])
    step = int(folder.read_progress().get("step", 0)) + 1
    if step < steps:
        folder.append_metrics(step, {"shapes/acc1": truth(one, step)})
    folder.progress.write_text(f'{{"step": {step}, "steps": {steps}, "elapsed_s": {step}.0}}')
    if folder.is_paused():
        return True
    if step >= steps:
        folder.finish(record(folder, one, steps))
    return step >= steps


def record(folder: RunFolder, one: Experiment, steps: int = STEPS) -> Record:
    metrics = {"acc1": {"value": truth(one, STEPS), "samples": 36}}
    key = evaluation_key(one.evaluation, "shapes")
    table = {"set": "shapes", "task": "zeroshot_classification", "protocol_id": "p", "request": key, "protocol": {}}
    return Record(
        run_id=folder.id,
        attempts=1,
        started_at=1.0,
        ended_at=2.0,
        steps=steps,
        samples_seen=steps * 16,
        epochs=steps / 6,
        data=DataReport(fingerprint=json.loads(folder.spec.read_text())["identity"]["data"]["fingerprint"], samples=96),
        final={"loss": 1.0},
        evaluations=(EvaluationResult.model_validate(table | {"metrics": metrics}),),
        cost=Cost(
            duration_s=8.0, evaluation_s=1.0, images_per_s=16.0, peak_memory_gb=1.0, device="cpu", threads=1
        ),
        versions={},
    )  # fmt: skip


def here(root: Path) -> Project:
    """A project under `root` with the small world generated."""
    made = project(root)
    materialise(experiment().data, made.store.data)
    return made


def driver(one: Search, at: Project, workers: MadeWorkers | None = None) -> Driver:
    return Driver(one, "made", at, here_with(at, workers))


def here_with(at: Project, workers: MadeWorkers | None = None) -> Callable[[Plan], LocalExecutor]:
    """Carries runs out with made workers."""
    return lambda plan: LocalExecutor(plan, at.store, at.settings, workers or MadeWorkers())


def on(cluster: MadeCluster, one: Search, at: Project, jobs: int = 3) -> Driver:
    """The driver of a search on a made cluster, as a fresh command makes it."""
    profile = Profile.model_validate({"mem_gb": 8, "partitions": ["cpu"], "array_parallelism": jobs})
    return Driver(one, "made", at, lambda plan: SlurmExecutor(plan, at.store, at.settings, profile, cluster))


def carried_out(one: Driver, looks: int | None = None) -> list[Snapshot]:
    """The snapshots of a search, or of its first `looks` looks: after them it is as if it had been killed."""
    found: list[Snapshot] = []
    steps: Iterator[Snapshot] = one.carry_out()
    for snapshot in steps:
        found.append(snapshot)
        if looks is not None and len(found) >= looks:
            break
    return found


def tried(one: Driver) -> list[Trial]:
    return [trial for trial in one.study.trials.values() if trial.status != "skipped"]


def journal(one: Driver) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(one.folder.journal)))
    return optuna.load_study(study_name="made", storage=storage)


def study_equals_records(one: Driver) -> None:
    """Optuna's journal, the events and the run folders tell the same."""
    study = journal(one)
    assert not [trial for trial in study.trials if trial.state is optuna.trial.TrialState.RUNNING]
    for trial in tried(one):
        frozen = study.trials[trial.number]
        assert frozen.params == trial.values
        if trial.final is not None and frozen.state is optuna.trial.TrialState.COMPLETE and not trial.notes:
            assert frozen.values == pytest.approx(trial.final)
        (run,) = [one.project.store.run(run_id) for run_id in one.run_ids(trial.number)]
        assert run.record_file.exists() == (trial.final is not None)
        if trial.final is not None:
            assert trial.final == one.configurations.objectives(
                one.configurations.plan.runs[run.id].experiment, run.record()
            )
