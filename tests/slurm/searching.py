"""A search under fire: `python -m tests.slurm.searching --trials 60 --seed 7`, on a test cluster that is up.

Four workers, a ladder whose rungs pause runs and go on with them, a teacher that all wait for. As many trials as asked
for, none doubled, none left running, the study equal to the records, and each run trained as if undisturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import optuna

from harness.config.load import load_search
from harness.execute.local.executor import LocalExecutor
from harness.execute.local.processes import LocalWorkers
from harness.execute.run import prepare_data
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.request import read_request
from harness.runs.settings import Settings
from harness.searching.driver import Driver
from harness.searching.study import Trial
from harness.searching.winner import as_ablation
from tests.node.small import TIMINGS
from tests.slurm.campaign import Campaign, check_submissions
from tests.slurm.chaos import carry_out
from tests.slurm.cluster import Cluster
from tests.slurm.faults import ON_SEARCHES, Mischief

WORKERS = 4
RATE, THRESHOLD = "train.optimiser.lr", "mining.image_text.quantile"
SEARCH = """
question = "Does every trial end once?"
experiment = "base.toml"
warm_start = false
finish = 1
[space]
"train.optimiser.lr" = {{ kind = "float", low = 1e-4, high = 1e-1, log = true }}
"mining.image_text.quantile" = {{ kind = "float", low = 0.9, high = 0.99 }}
[[objectives]]
metric = "shapes/acc1"
[budget]
trials = {trials}
[sampler]
kind = "tpe"
startup = 4
[pruner]
kind = "ladder"
probes = 0
first_rung = 1
"""
BASE = """
data = {{ kind = "shapes", train_samples = 96, test_samples = 36 }}
captions = {{ source = "captioner", count = 3 }}
loss = {{ kind = "multi_positive_sigmoid" }}
mining = {{ kind = "threshold", image_text = {{ quantile = 0.95 }}, image_image = {{ quantile = 0.95 }} }}
model = {{ name = "small", config = "model.json" }}
train = {{ duration = "{steps} steps", global_batch_size = 16, schedule = "constant" }}
evaluation = {{ sets = ["shapes"], templates = ["a photo of a {{c}}"], every = "{every} steps" }}
resources = {{ checkpoint_every_s = 0.5, log_every = 1 }}
teacher = {{ path = "teacher.toml" }}
"""
RUNGS = 4
"""Evaluations of a full run."""


@dataclass
class Hunt(Campaign):
    """A campaign whose head searches: `seeds` counts its trials."""

    verb: ClassVar[str] = "search"
    stem: ClassVar[str] = "search"

    def grow(self, seeds: int) -> None:
        """Ask for so many more trials."""
        self.seeds += seeds
        self.spec.write_text(SEARCH.format(trials=self.seeds))
        (self.folder / "base.toml").write_text(BASE.format(steps=self.steps, every=self.steps // RUNGS))

    def targets(self) -> list[RunFolder]:
        """Trials: while their teacher is trained, there is one run at work only."""
        return [one for one in self.runs() if one.request.exists() and read_request(one).teacher_run]

    def driver(self) -> Driver:
        """The search as its folder tells."""
        project = Project(Settings(store=self.store.root, tracking_uri="none"), self.store)
        search = load_search(self.spec)
        return Driver(search, self.spec.stem, project, lambda _: _nobody(), only_look=True)

    def carry_out_reference(self) -> None:
        """Every configuration to its full length, undisturbed, by processes of this machine with one thread each."""
        driver = self.driver()
        project = Project(Settings(store=self.reference.root, tracking_uri="none"), self.reference)
        plan = project.plan(as_ablation(driver.search, tried(driver)), name="reference")
        prepare_data(plan, project.store)
        workers = LocalWorkers(len(os.sched_getaffinity(0)), 1)
        *_, last = LocalExecutor(plan, project.store, project.settings, workers).run()
        assert last.done == last.total, last.failed


def _nobody() -> LocalExecutor:
    raise AssertionError("it is only looked at")


def tried(driver: Driver) -> list[Trial]:
    """Trials but for suggestions that could not be run."""
    return [trial for trial in driver.study.trials.values() if trial.status != "skipped"]


def check(hunt: Hunt) -> Counter[str]:
    """What has to hold in the end; returns how often each cause ended an attempt."""
    driver = hunt.driver()
    trials = tried(driver)
    assert len(trials) == hunt.seeds
    runs = {run for trial in trials for run in driver.run_ids(trial.number)}
    assert len(runs) == len(trials), "two trials are the same run"
    teachers = {folder.id for folder in hunt.runs()} - runs
    assert len(teachers) == 1
    check_study(driver)
    for trial in trials:
        (run,) = driver.run_ids(trial.number)
        check_curve(trial, hunt.store.run(run), hunt.reference.run(run))
    check_submissions(hunt)
    return check_attempts(hunt, driver)


def check_study(driver: Driver) -> None:
    """Optuna's journal has a trial for each of ours, all of them ended, with the values of the records."""
    backend = optuna.storages.journal.JournalFileBackend(str(driver.folder.journal))
    study = optuna.load_study(study_name=driver.folder.path.name, storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == len(driver.study.trials)
    for frozen in study.trials:
        trial = driver.study.trials[frozen.number]
        assert frozen.state.is_finished(), f"trial {frozen.number} is {frozen.state.name}"
        if trial.status == "skipped":
            continue
        assert trial.status in ("complete", "stopped"), f"trial {frozen.number} {trial.status}: {trial.why}"
        assert frozen.params == trial.values
        (run,) = driver.run_ids(trial.number)
        folder = driver.project.store.run(run)
        assert folder.record_file.exists() == (trial.final is not None)
        if trial.final is not None:
            planned = driver.configurations.plan.runs[run]
            assert trial.final == driver.configurations.objectives(planned.experiment, folder.record())
            assert frozen.values == list(trial.final)


def check_curve(trial: Trial, folder: RunFolder, reference: RunFolder) -> None:
    """What the run has trained is a prefix of the undisturbed run, bit for bit, and what was told stands in it."""
    own, straight = _steps(folder), _steps(reference)
    assert own, f"run {folder.id} has not been trained"
    assert own == straight[: len(own)], f"{folder.path} differs from {reference.path}"
    told = {step["shapes/acc1"] for step in own if "shapes/acc1" in step}
    assert {value for level, value in trial.curve.items() if level < RUNGS} <= told
    if folder.record_file.exists():
        assert folder.record().evaluations == reference.record().evaluations


def _steps(folder: RunFolder) -> list[dict[str, float]]:
    lines = folder.step_metrics()
    return [
        {name: one for name, one in line.values.items() if name not in TIMINGS} | {"step": line.step} for line in lines
    ]


def check_attempts(hunt: Hunt, driver: Driver) -> Counter[str]:
    """Every attempt has its cause, and a run was completed once, or once for each time that it was gone on with."""
    resumed = Counter(
        event["number"] for event in driver.folder.events(only_look=True).values() if event["event"] == "resumed"
    )
    legs = {run: 1 + resumed[trial.number] for trial in tried(driver) for run in driver.run_ids(trial.number)}
    causes: Counter[str] = Counter()
    for folder in hunt.runs():
        own = [attempt.end.cause if attempt.end else "" for attempt in folder.attempts.all()]
        assert all(own), f"run {folder.id} has attempts without a cause: {own}"
        least = int(folder.record_file.exists())  # the last word of one that paused may be lost with its job
        assert least <= own.count("completed") <= legs.get(folder.id, 1), f"run {folder.id}: {own}"
        causes.update(own)
    return causes


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="at least so many (default: 60)")
    parser.add_argument("--faults", type=int, default=22, help="default: 22, each kind twice")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--limit-min", type=float, default=60)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hunt-"))
    print(f"folder {folder}", flush=True)
    cluster = Cluster(Path(os.environ["SLURM_CONF"]).parent)
    cluster.tidy()
    hunt = Hunt.create(folder / "campaign", cluster, seeds=given.trials, parallelism=WORKERS)
    begun = time.monotonic()
    mischief = carry_out(hunt, given.seed, given.faults, given.limit_min * 60, kinds=ON_SEARCHES)
    print(f"search: {time.monotonic() - begun:.0f} s", flush=True)
    hunt.carry_out_reference()
    report(hunt, mischief)


def report(hunt: Hunt, mischief: Mischief) -> None:
    """Check, and print what was seen."""
    causes = check(hunt)
    trials = tried(hunt.driver())
    states = Counter(trial.status for trial in trials)
    struck = {kind: [one for one, _ in mischief.struck].count(kind) for kind in ON_SEARCHES}
    print(f"{len(trials)} trials, each once: {dict(states)}; the study equals the records")
    print(f"faults: {struck}")
    print(f"attempts by cause: {dict(causes)}")


if __name__ == "__main__":
    main()
