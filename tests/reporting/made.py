"""Plans and records made for the purpose: numbers like those of the embedded world, written as runs write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.planning.plan import Plan, make_plan
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.record import Cost, DataReport, EvaluationResult, Failure, Metric, Record
from harness.runs.store import Store

DATA = DataReport(fingerprint="5a3c9e01b7d2", samples=8192, rejected={"no caption": 12})
VERSIONS = {"python": "3.11.7", "torch": "2.15.0", "open_clip": "3.3.0", "harness": "0.1.0", "commit": "1a2b3c4"}
TAUGHT_BY = {"train": {"global_batch_size": 128, "duration": "1000 steps"}, "evaluation": {"sets": ["shapes"]}}
TEACHER = {"kind": "experiment", "experiment": TAUGHT_BY}
SIX = {"captions.source": "captioner", "captions.count": 5}
MINED = {"mining.kind": "threshold", "mining.image_text": 0.75, "mining.image_image": 0.97, "teacher": TEACHER}
SIGMOID = {"loss.kind": "multi_positive_sigmoid"}
QUICKSTART = {
    "question": "Do pseudo-captions and mined positives help?",
    "baseline": "clip",
    "seeds": 3,
    "primary": "shapes/acc1",
    "secondary": ["shapes_retrieval/image_retrieval_recall@1", "shapes_retrieval/text_retrieval_recall@1"],
    "arms": {
        "clip": {},
        "raw_mined": {**SIGMOID, **MINED},
        "sampled": {**SIX, "captions.mixing": "sample"},
        "all": {**SIX, **SIGMOID},
        "fff": {**SIX, **SIGMOID, **MINED},
    },
    "labels": {
        "clip": "CLIP, raw captions",
        "raw_mined": "Multi-positive sigmoid, raw captions, mined",
        "sampled": "CLIP, one of six captions sampled",
        "all": "Multi-positive sigmoid, all six captions",
        "fff": "FFF: all six captions, mined",
    },
    "claims": [
        {"text": "Pseudo-captions help", "arm": "sampled", "than": "clip", "source": "Table 6"},
        {"text": "All captions beat sampling one", "arm": "all", "than": "sampled", "factor": "captions.mixing"},
        {"text": "FFF beats CLIP on raw captions", "arm": "raw_mined", "than": "clip", "compares": "systems"},
        {"text": "Mining helps on six captions", "arm": "fff", "than": "all", "factor": "mining", "margin": "1 point"},
    ],
    "references": [
        {
            "arm": "clip",
            "metric": "imagenet1k/acc1",
            "value": 0.186,
            "source": "FFF, Table 4",
            "protocol": "ImageNet, B/16, CC3M",
        },
        {
            "arm": "fff",
            "metric": "imagenet1k/acc1",
            "value": 0.329,
            "source": "FFF, Table 4",
            "protocol": "ImageNet, B/16, CC3M",
        },
    ],
}
PLANNED: dict[str, PlannedRun] = {}
"""The runs of all plans made here: their records need their specs beside them."""
LEVELS = {"clip": 0.258, "raw_mined": 0.362, "sampled": 0.477, "all": 0.614, "fff": 0.543}


def plan_of(
    table: Mapping[str, Any],
    name: str = "quickstart",
    *,
    batch: int = 128,
    steps: int = 300,
    sets: Iterable[str] = ("shapes", "shapes_retrieval"),
) -> Plan:
    """The plan of an ablation given as its TOML table, on a data set of 8,192 samples."""
    train = {"global_batch_size": batch, "duration": f"{steps} steps"}
    base = Experiment.model_validate({"train": train, "evaluation": {"sets": list(sets)}})
    ablation = Ablation.model_validate({**table, "experiment": base})
    plan = make_plan(ablation, name=name, where="made.toml", inspect=lambda _: DATA)
    PLANNED.update(plan.runs)
    return plan


def record_of(run_id: str, metrics: Mapping[str, float], **changes: Any) -> Record:
    """A record with `metrics` (`set/metric` to value); `changes` replace its fields."""
    fields: dict[str, Any] = {
        "run_id": run_id,
        "attempts": 1,
        "started_at": 1.7e9,
        "ended_at": 1.7e9 + 75,
        "steps": 300,
        "samples_seen": 38400,
        "epochs": 38400 / 8192,
        "data": DATA,
        "final": {"loss": 2.5, "logit_scale": 14.0},
        "evaluations": evaluations(metrics),
        "cost": Cost(duration_s=61.0, evaluation_s=2.0, images_per_s=630, peak_memory_gb=0.9, device="cpu", threads=1),
        "versions": VERSIONS,
    }
    return Record(**{**fields, **changes})


def evaluations(metrics: Mapping[str, float], protocol_id: str = "p1") -> tuple[EvaluationResult, ...]:
    """The evaluations that hold `metrics`."""
    sets: dict[str, dict[str, Metric]] = {}
    for name, value in metrics.items():
        set_name, metric = name.split("/")
        error = math.sqrt(max(value * (1 - value), 0) / 1500)
        sets.setdefault(set_name, {})[metric] = Metric(value=value, standard_error=error, samples=1500)
    return tuple(
        EvaluationResult(
            set=name,
            task="zeroshot_retrieval" if "retrieval" in name else "zeroshot_classification",
            protocol_id=f"{name}-{protocol_id}",
            protocol={"templates": ["a {c}."], "precision": "float32", "classnames": {"count": 36, "sha256": "0"}},
            metrics=found,
        )
        for name, found in sets.items()
    )


def begin(store: Store, run_id: str) -> RunFolder:
    """A run's folder with its frozen spec."""
    store.run(run_id).prepare(PLANNED[run_id].identity, {})
    return store.run(run_id)


def finish(store: Store, run_id: str, metrics: Mapping[str, float], **changes: Any) -> Record:
    """Write spec and record of a finished run."""
    run = PLANNED[run_id]
    steps, batch = run.steps, run.experiment.train.global_batch_size
    data = changes.get("data", DATA)
    amounts = {"steps": steps, "samples_seen": steps * batch, "epochs": steps / (data.samples // batch)}
    record = record_of(run_id, metrics, **{**amounts, **changes})
    folder = begin(store, run_id)
    folder.finish(record)
    return folder.record()


def fail(store: Store, run_id: str, cause: str, message: str) -> None:
    """Write how a run failed."""
    failure = Failure.model_validate({"cause": cause, "message": message, "attempt": 1, "ended_at": 1.7e9})
    store.run(run_id).fail(failure)


def fill(plan: Plan, store: Store, levels: Mapping[str, float], *, skip: Iterable[tuple[str, int]] = ()) -> None:
    """Finish every run of the plan but `skip`: accuracies around `levels`, with training metrics and curves."""
    rng = np.random.default_rng(7)
    for (arm, seed), run_id in plan.cells.items():
        accuracy = float(np.clip(levels[arm] + 0.012 * (seed - 1) + rng.normal(0, 0.01), 0.01, 0.99))
        if (arm, seed) in set(skip):
            continue
        experiment = plan.arm(arm).experiment
        mined = experiment.mining.kind != "none"
        final = {"loss": 3.1 - 2 * accuracy, "logit_scale": 14 + 4 * accuracy, "positives_per_image": 1.0}
        if mined:
            final |= {"positives_per_image": 9.4, "mining_precision": 0.89, "mining_recall": 0.46 + 0.01 * seed}
        metrics = {
            "shapes/acc1": accuracy,
            "shapes/acc5": min(0.99, accuracy + 0.3),
            "shapes/mean_per_class_recall": accuracy - 0.004,
            "shapes_retrieval/image_retrieval_recall@1": min(accuracy * 1.12, 0.99),
            "shapes_retrieval/text_retrieval_recall@1": min(accuracy * 1.05, 0.99),
        }
        captions = experiment.captions.per_image
        cost = Cost(
            duration_s=31 + 7 * captions + seed,
            evaluation_s=1.8,
            images_per_s=38400 / (31 + 7 * captions),
            peak_memory_gb=0.6 + 0.05 * captions,
            device="cpu",
            threads=1,
        )
        _curves(store, run_id, final, accuracy, rng)
        finish(store, run_id, metrics, final=final, cost=cost)
    for run in plan.runs.values():
        if run.role == "teacher":
            finish(store, run.id, {"shapes/acc1": 0.974})


def _curves(store: Store, run_id: str, final: Mapping[str, float], accuracy: float, rng: np.random.Generator) -> None:
    folder = begin(store, run_id)
    for step in range(10, 301, 10):
        done = step / 300
        values = {"loss": final["loss"] + 4 * math.exp(-4 * done) + float(rng.normal(0, 0.05))}
        values |= {key: final[key] * (0.9 + 0.1 * done) for key in ("mining_precision",) if key in final}
        if step % 50 == 0:
            values["shapes/acc1"] = accuracy * done**1.5
        folder.append_metrics(step, values)


def quickstart(root: Path, **fields: Any) -> tuple[Plan, Store]:
    """The embedded ablation, finished."""
    plan, store = plan_of({**QUICKSTART, **fields}), Store(root)
    fill(plan, store, LEVELS)
    return plan, store


def simple(
    root: Path, levels: Mapping[str, Iterable[float]], metric: str = "shapes/acc1", **fields: Any
) -> tuple[Plan, Store]:
    """An ablation whose arms got these values of its primary metric, seed by seed; NaN leaves a run undone.

    The first arm is the baseline; `fields` are further fields of the ablation.
    """
    values = {arm: list(numbers) for arm, numbers in levels.items()}
    most = max(len(numbers) for numbers in values.values())
    table = {
        "question": "Which is better?",
        "baseline": next(iter(values)),
        "seeds": most,
        "primary": metric,
        "arms": {arm: {"train.optimiser.lr": 0.001 * (place + 1)} for place, arm in enumerate(values)},
    }
    plan, store = plan_of({**table, **fields}, "simple"), Store(root)
    places = {seed: place for place, seed in enumerate(sorted({seed for _, seed in plan.cells}))}
    for (arm, seed), run_id in plan.cells.items():
        place = places[seed]
        if place < len(values[arm]) and not math.isnan(values[arm][place]):
            finish(store, run_id, {metric: values[arm][place]})
    return plan, store
