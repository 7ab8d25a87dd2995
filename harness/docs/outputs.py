"""What `--json` prints, as models: the schemas are generated from them, and tests validate the outputs with them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

Schema = dict[str, Any]


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class CheckOutput(_Output):
    """`harness check SPEC --json`; a list of several."""

    spec: str
    kind: str
    """`ablation` or `search`. A mistake in the spec is a sentence on stderr and exit status 2, not JSON."""
    arms: int
    """Number of arms; 1 for a search, whose base is checked."""
    runs: int
    wrong: list[str]
    """What would stop runs on any machine, a sentence each."""
    missing: list[str]
    """What is not on this machine, a sentence each."""
    notes: list[str]
    """What looks wrong about files that are here, and what is left out of the data."""
    confounded: list[str]
    """Claims whose arms differ in more than the claim's factor."""


class PlanArm(_Output):
    """An arm of a plan."""

    name: str
    label: str
    changes: dict[str, Any]
    """Its changes to the base: dotted path to value."""
    differs_from_baseline: dict[str, list[Any]]
    """Dotted path to [baseline's value, the arm's value]."""
    runs: dict[str, str]
    """Run ids by seed."""


class PlannedRunOutput(_Output):
    """A run of a plan."""

    id: str
    role: str
    """`arm` or `teacher`."""
    teacher: str | None
    """Id of the run that trains its teacher."""
    steps: int
    """Optimiser steps; 0 if the data is missing."""
    state: str


class CanTell(_Output):
    """The smallest difference in the primary metric that the planned seeds can tell, on the metric's own scale."""

    size: float
    low: float
    high: float
    """What comes out lies between these in about 80 % of ablations."""
    arms: int
    """Finished arms that it is estimated from."""


class OperationsCost(_Output):
    """What the missing runs cost on a GPU, from their floating point operations (`--gpu`)."""

    gpu: str
    peak_flops: float
    """Dense half-precision peak of the GPU, in FLOP/s."""
    utilisation: float
    """Share of the peak that training is taken to reach."""
    tokens: int
    """Length of a caption."""
    flops: float
    """Floating point operations of all missing runs."""
    gpu_hours: float
    arms: dict[str, float]
    """GPU-hours of the missing runs of each arm. A run of several arms counts in each, a teacher in none."""
    sample_gflops: dict[str, float]
    """Operations on one image and its captions by arm, in GFLOP."""


class PlanCost(_Output):
    """What is still to do."""

    runs: int
    runs_missing: int
    samples_missing: int
    """Images to train on."""
    hours_missing: float | None
    """Hours of one worker; null if the time of most runs is not known: no run of their shape has finished."""
    hours_known: float
    """Hours of the missing runs whose time is known."""
    runs_unknown: int
    """Missing runs whose time is not known."""
    basis: str
    operations: OperationsCost | None
    """null without `--gpu`."""


class PlanOutput(_Output):
    """`harness plan SPEC --json`; a list of these for several specs."""

    name: str
    question: str
    baseline: str
    primary: str
    provisional: list[str]
    """Why run ids are provisional: data that is not on this machine."""
    census: dict[str, list[str]]
    """What each data set is read as, by fingerprint."""
    arms: list[PlanArm]
    runs: list[PlannedRunOutput]
    claims: list[dict[str, Any]]
    references: list[dict[str, Any]]
    published: dict[str, dict[str, str]]
    """Systems without an arm, whose numbers are in `references`: label and reason by name."""
    cost: PlanCost
    can_tell: CanTell | None
    """null: no two arms of this length have finished with the primary metric."""


class RunStatusOutput(_Output):
    """The state of a run."""

    run: str
    arm: str
    """`(teacher)` for a teacher."""
    seed: int | None
    state: str
    """One of the states of docs/slurm.md."""
    detail: str
    """The state with its cause."""
    step: int | None
    steps: int | None
    left_s: float | None
    duration_s: float | None
    metric: float | None
    """Latest value of the primary metric, in its own scale (shares from 0 to 1)."""
    node: str
    attempts: int
    gpu_hours: float
    core_hours: float
    failure: str


class StatusOutput(_Output):
    """`harness status SPEC --json`."""

    name: str
    primary: str
    states: dict[str, int]
    """Number of runs by state."""
    runs: list[RunStatusOutput]
    notes: list[str]


class ReportOutput(_Output):
    """`harness report SPEC --json`, the same as `--format json`. docs/reports.md describes the parts."""

    version: int
    name: str
    question: str
    answer: dict[str, Any]
    baseline: str
    primary: str
    estimation: str
    margin: Any
    flags: list[dict[str, Any]]
    arms: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    references: list[dict[str, Any]]
    published: dict[str, dict[str, str]]
    """Systems without an arm, whose numbers are in `references`: label and reason by name."""
    runs: list[dict[str, Any]]
    data: dict[str, Any]
    protocols: dict[str, Any]


class EvalMetric(_Output):
    """A value of `harness eval`."""

    checkpoint: str
    set: str
    metric: str
    value: float
    """In the metric's own scale (shares from 0 to 1)."""
    standard_error: float | None
    samples: int
    protocol_id: str


class EvalOutput(_Output):
    """`harness eval CHECKPOINT --suite NAME --json`."""

    results: list[EvalMetric]
    without_average: dict[str, list[str]]
    """Suites without an average, with their sets that were not measured."""


class DoctorFinding(_Output):
    """A finding of `harness doctor`."""

    level: str
    """`ok`, `warning` or `error`."""
    subject: str
    message: str
    remedy: str


class DoctorOutput(_Output):
    """`harness doctor --json`."""

    findings: list[DoctorFinding]


OUTPUTS: dict[str, type[BaseModel]] = {
    "check": CheckOutput,
    "plan": PlanOutput,
    "status": StatusOutput,
    "report": ReportOutput,
    "eval": EvalOutput,
    "doctor": DoctorOutput,
}
"""The output of each verb that has `--json`."""


def output_schema() -> Schema:
    """The JSON Schema of all outputs: one definition each, `properties` by verb."""
    keys, definitions = models_json_schema([(model, "serialization") for model in OUTPUTS.values()])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What harness VERB --json prints",
        "properties": {verb: keys[model, "serialization"] for verb, model in OUTPUTS.items()},
        **definitions,
    }
