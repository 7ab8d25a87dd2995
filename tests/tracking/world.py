"""A plan of two arms, two seeds and a teacher, with run folders as workers leave them, and what MLflow then holds."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.planning.plan import Plan, make_plan
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.record import Cost, DataReport, EvaluationResult, Failure, Metric, Record, StepMetrics
from harness.runs.store import Store

START = 1_700_000_000.0
DATA = DataReport(fingerprint="5a3c9e01b7d2", samples=8192, rejected={"no caption": 12})
SETS = {"evaluation": {"sets": ["shapes", "shapes_retrieval"]}}
TEACHER = {"train": {"global_batch_size": 128, "duration": "9 steps"}, **SETS}
ARMS: dict[str, Any] = {
    "clip": {},
    "mined": {
        "loss.kind": "multi_positive_sigmoid",
        "mining": {"kind": "threshold", "image_text": 0.75},
        "teacher": {"kind": "experiment", "experiment": TEACHER},
    },
}


PLANNED: dict[str, PlannedRun] = {}
"""The runs of all plans made here."""


def plan_of(arms: Mapping[str, Any] = ARMS, *, name: str = "quickstart", seeds: int = 2) -> Plan:
    """A plan on a made-up data set of 8,192 samples."""
    train = {"global_batch_size": 128, "duration": "300 steps"}
    base = Experiment.model_validate({"train": train, **SETS})
    table = {"question": "Does mining help?", "baseline": "clip", "seeds": seeds, "primary": "shapes/acc1"}
    ablation = Ablation.model_validate({**table, "arms": arms, "experiment": base})
    plan = make_plan(ablation, name=name, where="made.toml", inspect=lambda _: DATA)
    PLANNED.update(plan.runs)
    return plan


def begin(folder: RunFolder, plan: Plan, lines: int, *, first: int = 0, start: float = START) -> None:
    """Leave what a run leaves after `lines` lines of metrics, written from line `first` on."""
    if not folder.spec.exists():
        folder.prepare(plan.runs[folder.id].identity, {})
    os.utime(folder.spec, (START, START))
    folder.progress.write_text("{}")
    with folder.metrics.open("a") as stream:
        for step in range(first, lines):
            values = {"loss": 5.0 / (step + 1), "positives@image": 1.0 + step / 7, "lr": 1e-3}
            line = StepMetrics(step=step * 10, time=start + step / 3, values=values)
            stream.write(f"{line.model_dump_json()}\n")


def record_of(run_id: str, *, seed: int = 0, ended: float = START + 60, protocol: str = "p1", **more: float) -> Record:
    """A record with a classification and a retrieval set; `more` are further metrics of the classification."""
    run = PLANNED[run_id]
    steps, samples_seen = run.steps, run.steps * run.experiment.train.global_batch_size
    acc1 = {"acc1": Metric(value=0.25 + seed / 3, standard_error=0.0125, samples=1000)}
    acc1 |= {name: Metric(value=value, samples=1000) for name, value in more.items()}
    recall = {"image_retrieval_recall@5": Metric(value=0.5 + seed / 7, samples=500)}
    sets = [("shapes", "zeroshot_classification", acc1), ("shapes_retrieval", "zeroshot_retrieval", recall)]
    evaluations = [
        EvaluationResult.model_validate(
            {"set": name, "task": task, "protocol_id": f"{protocol}-{name}", "protocol": {}, "metrics": metrics}
        )
        for name, task, metrics in sets
    ]
    return Record(
        run_id=run_id,
        attempts=1,
        started_at=START,
        ended_at=ended,
        steps=steps,
        samples_seen=samples_seen,
        epochs=samples_seen / 8192,
        data=DATA,
        final={"loss": 0.5, "mining_precision": 0.875},
        evaluations=tuple(evaluations),
        cost=Cost(duration_s=50, evaluation_s=5, images_per_s=768, peak_memory_gb=0.5, device="cpu", threads=1),
        versions={"python": "3.11.7", "torch": "2.15.0", "commit": "1a2b3c4"},
    )


def finish(folder: RunFolder, plan: Plan, *, lines: int = 30, seed: int = 0) -> None:
    """Leave a finished run."""
    begin(folder, plan, lines)
    folder.finish(record_of(folder.id, seed=seed))


def finish_all(plan: Plan, store: Store, *, lines: int = 30) -> None:
    """Leave every run of the plan finished; those that are stay as they are."""
    seeds = {run: seed for (_, seed), run in plan.cells.items()}
    for run in plan.runs:
        if not store.run(run).record_file.exists():
            finish(store.run(run), plan, lines=lines, seed=seeds.get(run, 0))


def fail(folder: RunFolder, plan: Plan, cause: str, message: str) -> None:
    """Leave a run that ended early."""
    begin(folder, plan, 5)
    folder.fail(Failure.model_validate({"cause": cause, "message": message, "attempt": 1, "ended_at": START + 9}))


def sqlite_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def rows(database: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    """What the SQLite file itself holds: no MLflow client stands between."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query, values).fetchall()


def content(database: Path) -> dict[str, Any]:
    """All that an import wrote and that another import of the same files has to write again, without MLflow's ids."""
    name = "(SELECT value FROM tags k WHERE k.run_uuid = {}.run_uuid AND k.key = 'harness.key')"
    active = "run_uuid IN (SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active')"
    tables = {
        "runs": f"SELECT {name.format('runs')}, name, status, start_time, end_time FROM runs WHERE {active}",
        "params": f"SELECT {name.format('params')}, key, value FROM params WHERE {active}",
        "metrics": f"SELECT {name.format('metrics')}, key, step, timestamp, value FROM metrics WHERE {active}",
        "latest": f"SELECT {name.format('latest_metrics')}, key, step, value FROM latest_metrics WHERE {active}",
        "tags": f"SELECT {name.format('tags')}, key, value FROM tags WHERE key != 'mlflow.parentRunId' AND {active}",
        "parents": f"""SELECT {name.format("tags")}, p.value FROM tags JOIN tags p ON p.run_uuid = tags.value
            AND p.key = 'harness.key' WHERE tags.key = 'mlflow.parentRunId' AND tags.{active}""",
        "inputs": "SELECT name, digest, dataset_source, dataset_profile FROM datasets",
        "used": "SELECT count(*) FROM inputs",
    }
    found = {table: sorted(rows(database, query), key=str) for table, query in tables.items()}
    files = sorted(
        (path.name, path.read_text()) for path in (database.parent / "mlflow-artifacts").rglob("*") if path.is_file()
    )
    return {**found, "files": files}
