"""GPU-hours from operations: the count equals the towers' formulas, and the hours follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import SpecError
from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.node.operations import sample_flops
from harness.planning.estimate import operations
from harness.planning.plan import Plan, make_plan
from harness.runs.folder import State
from harness.runs.record import DataReport
from harness.runs.store import Store

CONTEXT = 77


def plan_of(samples: int | None = 1_000_000, seeds: int = 1, **arms: Any) -> Plan:
    """Arms over ViT-B-32 on CC3M's spec; `samples` None: the data is not here."""
    train = {"duration": "2 epochs", "global_batch_size": 1000}
    data = {"kind": "webdataset", "shards": "x.tar", "pseudo": {"blip2": "json:c"}}
    base = Experiment.model_validate({"model": {"name": "ViT-B-32"}, "data": data, "train": train})
    report = DataReport(fingerprint="f", samples=samples or 0, missing=None if samples else "not here")
    table = {"question": "?", "baseline": next(iter(arms)), "arms": arms, "seeds": seeds, "primary": "imagenet1k/acc1"}
    ablation = Ablation.model_validate({**table, "experiment": base})
    return make_plan(ablation, name="made", where="made.toml", inspect=lambda _: report)


def transformer(length: int, width: int, layers: int) -> float:
    """Operations of the matrix products of a transformer: projections, attention, a fourfold MLP."""
    projections, attention, mlp = 2 * length * 4 * width**2, 2 * 2 * length**2 * width, 2 * 2 * length * 4 * width**2
    return layers * (projections + attention + mlp)


IMAGE = 2 * 49 * (3 * 32 * 32) * 768 + transformer(50, 768, 12) + 2 * 768 * 512
TEXT = transformer(CONTEXT, 512, 12) + 2 * 512 * 512


@pytest.fixture(scope="module")
def counted() -> dict[str, float]:
    plan = plan_of(
        clip={},
        six={"captions": {"source": "blip2", "count": 5}},
        slip={"loss": {"kind": "slip"}, "train.augment": {"kind": "crop"}},
        lit={"train.lock": {"image": True}},
        lit_text={"train.lock": {"text": True}},
        last={"train.lock": {"text": True, "text_unlocked_layers": 1}},
    )
    found = sample_flops(plan.runs.values(), CONTEXT)
    return {arm: found[run] for (arm, _), run in plan.cells.items()}


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("clip", 3 * (IMAGE + TEXT)),
        ("six", 3 * (IMAGE + 6 * TEXT)),
        ("slip", 3 * (3 * IMAGE + TEXT)),
        ("lit", IMAGE + 3 * TEXT),
        ("lit_text", 3 * IMAGE + TEXT),
        ("last", 3 * (IMAGE + TEXT)),
    ],
)
def test_the_count_equals_the_formula(counted: dict[str, float], arm: str, expected: float) -> None:
    assert counted[arm] == pytest.approx(expected, rel=1e-12)


def test_padding_is_not_counted(counted: dict[str, float]) -> None:
    plan = plan_of(clip={})
    (short,) = sample_flops(plan.runs.values(), 16).values()
    assert 3 * (IMAGE + transformer(16, 512, 12)) <= short < counted["clip"]
    (long,) = sample_flops(plan.runs.values(), 500).values()
    assert long == counted["clip"]


def test_hours_are_operations_over_peak_and_utilisation(tmp_path: Path) -> None:
    plan = plan_of(seeds=2, clip={}, low={"train.optimiser.lr": 1e-4})
    flops = dict.fromkeys(plan.runs, 1e9)
    states = Store(tmp_path).states(plan.runs)
    found = operations(plan, states, flops, "h100", 0.5, 32, None)
    run = 1e9 * 2000 * 1000 / (989e12 * 0.5) / 3600
    assert found.gpu_hours == pytest.approx(4 * run)
    assert found.flops == pytest.approx(4 * 2e15)
    assert found.arms == pytest.approx({"clip": 2 * run, "low": 2 * run})
    assert (found.gpu, found.peak_flops, found.sample_gflops) == ("H100", 989e12, {"clip": 1.0, "low": 1.0})
    states[plan.cells["clip", 0]] = State.DONE
    found = operations(plan, states, flops, "A100", 0.5, 32, None)
    assert found.arms == pytest.approx({"clip": run * 989 / 312, "low": 2 * run * 989 / 312})


def test_data_that_is_not_here_needs_its_size(tmp_path: Path) -> None:
    plan = plan_of(samples=None, clip={})
    flops, states = dict.fromkeys(plan.runs, 1e9), Store(tmp_path).states(plan.runs)
    with pytest.raises(SpecError, match=r"unknown number of steps; give the size of the data with --samples"):
        operations(plan, states, flops, "H100", 0.5, 32, None)
    assert operations(plan, states, flops, "H100", 0.5, 32, 3_000_500).flops == 1e9 * 6000 * 1000
    steps = plan_of(samples=None, clip={"train.duration": "70 steps"})
    flops, states = dict.fromkeys(steps.runs, 1e9), Store(tmp_path).states(steps.runs)
    assert operations(steps, states, flops, "H100", 0.5, 32, None).flops == 1e9 * 70 * 1000


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    plan = plan_of(clip={})
    with pytest.raises(SpecError, match="the peak of 'TPU' is not known; known: H200, "):
        operations(plan, Store(tmp_path).states(plan.runs), dict.fromkeys(plan.runs, 1.0), "TPU", 0.5, 32, None)
