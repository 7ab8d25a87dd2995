"""Specs, plans and finished runs as small as they can be, without any data behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.config.ablation import Ablation
from harness.config.data import Data
from harness.config.experiment import Experiment
from harness.planning.plan import Inspect, Plan, make_plan
from harness.runs.identity import digest
from harness.runs.planned import PlannedRun
from harness.runs.record import Cost, DataReport, EvaluationResult, Record

SMALL = """
[captions]
source = "captioner"
[teacher]
path = "teacher.toml"
[train]
duration = "300 steps"
global_batch_size = 128
[evaluation]
sets = ["shapes"]
"""
TEACHER = """
[train]
duration = "1000 steps"
global_batch_size = 128
"""
ABLATION = """
question = "Does it help?"
experiment = "small.toml"
baseline = "plain"
primary = "shapes/acc1"
[arms.plain]
[arms.more]
captions.count = 5
loss.kind = "multi_positive_sigmoid"
"""
MINING = {"kind": "threshold", "image_text": 0.3}
BASE: dict[str, Any] = {
    "captions": {"source": "captioner"},
    "teacher": {"kind": "experiment", "experiment": {"train": {"duration": "1000 steps", "global_batch_size": 128}}},
    "train": {"duration": "300 steps", "global_batch_size": 128},
    "evaluation": {"sets": ["shapes"]},
}


PLANNED: dict[str, PlannedRun] = {}
"""The runs of all plans made here."""


def write(folder: Path, files: Mapping[str, str] | None = None, **more: str) -> Path:
    """Write TOML files into `folder`: the small project with an ablation, some of its files replaced."""
    texts = {"small.toml": SMALL, "teacher.toml": TEACHER, "ablation.toml": ABLATION, "harness.toml": 'store = "store"'}
    for name, text in {**texts, **(files or {}), **more}.items():
        (folder / name).write_text(text)
    return folder / "ablation.toml"


def looked_at(samples: int = 8192) -> Inspect:
    """Stands in for looking at data: the fingerprint is a hash of its spec."""

    def look(data: Data) -> DataReport:
        return DataReport(fingerprint=digest(data.science(defaults=True)), samples=samples)

    return look


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**BASE, **changes})


def ablation(arms: Mapping[str, Any] | None = None, **more: Any) -> Ablation:
    table = {"question": "?", "experiment": experiment(), "primary": "shapes/acc1"}
    stated = {"arms": arms, "baseline": next(iter(arms))} if arms else {}
    return Ablation.model_validate({**table, **stated, **more})


def plan_of(one: Ablation, samples: int = 8192) -> Plan:
    plan = make_plan(one, name="made", where="made.toml", inspect=looked_at(samples))
    PLANNED.update(plan.runs)
    return plan


def record(run: str | PlannedRun, *, requests: Mapping[str, str] | None = None) -> Record:
    """A record of a run (of a plan that was made here, if it is an id), measured on the sets of `requests`."""
    run = PLANNED[run] if isinstance(run, str) else run
    steps, batch = run.steps, run.experiment.train.global_batch_size
    evaluations = [
        EvaluationResult.model_validate(
            {
                "set": name,
                "task": "zeroshot_classification",
                "protocol_id": "p",
                "request": key,
                "protocol": {},
                "metrics": {"acc1": {"value": 0.5, "samples": 10}},
            }
        )
        for name, key in (requests or {}).items()
    ]
    return Record(
        run_id=run.id,
        attempts=1,
        started_at=1.0,
        ended_at=2.0,
        steps=steps,
        samples_seen=steps * batch,
        epochs=steps / (8192 // batch),
        data=DataReport(fingerprint=run.identity.fingerprint, samples=8192),
        final={"loss": 1.0},
        evaluations=tuple(evaluations),
        cost=Cost(duration_s=60.0, evaluation_s=1.0, images_per_s=640.0, peak_memory_gb=1.0, device="cpu", threads=1),
        versions={},
    )


def is_one_sentence(error: HarnessError) -> bool:
    """Whether a person is told where, what, and nothing of how the code is made."""
    text = str(error)
    return bool(error.where) and "\n" not in text and not any(word in text for word in ("Traceback", "pydantic", "\\n"))
