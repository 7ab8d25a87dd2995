"""What planned seeds can tell: against simulation, and through a store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.cli import output
from harness.execute.run import remember
from harness.planning.estimate import finished_arms
from harness.planning.preflight import notes
from harness.reporting.forecast import can_tell
from harness.runs.store import Store
from harness.statistics import Estimator, t_interval
from harness.statistics.forecast import forecast
from tests.reporting.made import QUICKSTART, plan_of, simple

BASE = {"a": [0.20, 0.22, 0.21], "b": [0.30, 0.33, 0.32], "c": [0.25, 0.24, 0.27]}


def table(values: np.ndarray) -> dict[str, dict[int, float]]:
    return {str(arm): dict(enumerate(row)) for arm, row in enumerate(values.tolist())}


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_what_comes_out_is_around_the_forecast(seeds: int) -> None:
    rng, ratios, inside = np.random.default_rng(seeds), [], []
    for _ in range(300):
        said = forecast([table(rng.normal(size=(5, 4)))], seeds, 5, 4, "shared")
        delta = Estimator(table(rng.normal(size=(5, seeds)))).difference("1", "0")
        assert said is not None
        assert delta is not None
        assert delta.error is not None
        assert delta.df is not None
        told = t_interval(0.0, delta.error, delta.df, 1 - 0.05 / 4).high
        ratios.append(told / said.size)
        inside.append(said.low <= told <= said.high)
    assert 0.8 < float(np.median(ratios)) < 1.25
    assert float(np.mean(inside)) > 0.8  # arms with equal noise: more often inside than real ones


def test_a_forecast_scales_with_the_values_and_shrinks_with_seeds() -> None:
    values = np.random.default_rng(1).normal(size=(4, 3))
    one, ten = (forecast([table(values * factor)], 3, 4, 3, "shared") for factor in (1, 10))
    more, harder = forecast([table(values)], 6, 4, 3, "shared"), forecast([table(values)], 3, 4, 9, "shared")
    assert one is not None
    assert ten is not None
    assert more is not None
    assert harder is not None
    assert (ten.size, ten.low, ten.high) == pytest.approx((10 * one.size, 10 * one.low, 10 * one.high))
    assert more.size < one.size / 2**0.5
    assert harder.size > one.size
    assert one.low < one.size < one.high
    assert one.arms == 4


def test_nothing_is_said_without_noise_to_learn_from() -> None:
    assert forecast([], 3, 2, 1, "shared") is None
    assert forecast([{"a": {0: 1.0}, "b": {0: 2.0}}], 3, 2, 1, "shared") is None
    assert forecast([table(np.random.default_rng(1).normal(size=(3, 3)))], 1, 3, 2, "shared") is None


def test_a_plan_says_what_its_seeds_can_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, store = simple(tmp_path, BASE)
    fresh = plan_of(
        {
            **done.ablation.model_dump(include={"question", "baseline", "primary"}),
            "seeds": 3,
            "arms": {arm: {"train.optimiser.lr": 0.1 * (n + 1)} for n, arm in enumerate(BASE)},
        },
        "fresh",
    )
    output.plan(fresh, store)
    assert "that 3 seeds can tell is not known" in capsys.readouterr().out
    remember(done, store)
    output.plan(fresh, store)
    said = capsys.readouterr().out
    found = can_tell(fresh, finished_arms(fresh, store))
    assert found is not None
    assert f"3 seeds can tell a difference of about {100 * found.size:.1f} points in shapes/acc1" in said
    assert "from 3 finished arms" in said
    assert output.plan_json(fresh, store)["can_tell"]["size"] == found.size
    json.dumps(output.plan_json(fresh, store))
    longer = plan_of({"question": "?", "baseline": "a", "primary": "shapes/acc1", "arms": {"a": {}}}, steps=600)
    other = plan_of({"question": "?", "baseline": "a", "primary": "shapes/acc5", "arms": {"a": {}}})
    assert finished_arms(longer, store) == []
    assert finished_arms(other, store) == []


@pytest.mark.parametrize("seeds", [1, 2, [7], [7, 8]])
def test_one_seed_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: int | list[int]
) -> None:
    planned = plan_of({**QUICKSTART, "seeds": seeds})
    output.plan(planned, Store(tmp_path))
    told = "1 seed can tell no difference" in capsys.readouterr().out
    noted = any(note.startswith("seeds: one seed shows no spread") for note in notes(planned, planned.settings))
    assert told == noted == (seeds in (1, [7]))
