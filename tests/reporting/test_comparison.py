from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.evaluation.registry import MetricDefinition, registered
from harness.planning.plan import Plan
from harness.reporting import Results, collect, render
from harness.reporting.collect.comparison import compare_arms, difference_between
from harness.runs.record import Record
from harness.runs.store import Store
from tests.reporting.made import evaluations, finish, quickstart, simple

METRIC = "shapes/acc1"


def values_of(plan: Plan, store: Store, arm: str) -> list[float]:
    """Read from the files by nothing of the report."""
    found = []
    for run_id in plan.ids(arm).values():
        record = json.loads((store.root / "runs" / run_id / "record.json").read_text())
        (one,) = [one for one in record["evaluations"] if one["set"] == "shapes"]
        found.append(one["metrics"]["acc1"]["value"])
    return found


def column_of(data: dict[str, Any], metric: str) -> dict[str, Any]:
    (column,) = [one for one in data["metrics"] if one["metric"] == metric]
    return {arm["arm"]: arm for arm in column["arms"]}


def test_with_paired_estimation_the_numbers_are_scipys_on_the_record_files(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path, estimation="paired")
    results = collect(plan, store)
    arms = column_of(json.loads(render(results, "json")), METRIC)
    base = values_of(plan, store, "clip")
    others = [arm.name for arm in plan.arms if arm.name != "clip"]
    p_values = []
    for arm in others:
        ours = values_of(plan, store, arm)
        expected = stats.ttest_rel(ours, base)
        bounds = expected.confidence_interval(0.95)
        p_values.append(expected.pvalue)
        difference = arms[arm]["difference"]
        assert arms[arm]["summary"]["mean"] == pytest.approx(np.mean(ours), abs=1e-12)
        assert arms[arm]["summary"]["sd"] == pytest.approx(np.std(ours, ddof=1), abs=1e-12)
        assert difference["mean"] == pytest.approx(np.mean(np.array(ours) - base), abs=1e-12)
        assert [difference["interval"][side] for side in ("low", "high")] == pytest.approx([bounds.low, bounds.high])
        assert difference["p"] == pytest.approx(expected.pvalue)
    corrected = multipletests(p_values, method="holm")[1]
    assert [arms[arm]["holm_p"] for arm in others] == pytest.approx(corrected)


@pytest.mark.parametrize("format", ["terminal", "md", "html", "latex"])
def test_every_format_prints_those_numbers(tmp_path: Path, format: Any) -> None:
    plan, store = quickstart(tmp_path, estimation="paired")
    text = (
        render(collect(plan, store), format)
        .replace("−", "-")
        .replace("$-$", "-")
        .replace("$\\pm$", "±")
        .replace("\\[", "[")
    )
    base = values_of(plan, store, "clip")
    for arm in ("raw_mined", "sampled", "all", "fff"):
        ours = values_of(plan, store, arm)
        bounds = stats.ttest_rel(ours, base).confidence_interval(0.95)
        assert f"{100 * np.mean(ours):.1f} ± {100 * np.std(ours, ddof=1):.1f}" in text
        delta = 100 * (np.mean(ours) - np.mean(base))
        assert f"+{delta:.1f} [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}" in text


def test_the_baseline_is_not_compared_with_itself(results: Results) -> None:
    column = compare_arms(results, METRIC)
    assert column.arms["clip"].difference is None
    assert column.arms["clip"].holm_p is None


def test_holm_counts_only_arms_that_were_compared(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.1, 0.2, 0.15], "b": [0.3, 0.42, 0.33], "c": [], "d": [0.5]})
    column = compare_arms(collect(plan, store), METRIC)
    delta = column.arms["b"].difference
    assert delta is not None
    assert column.arms["b"].holm_p == delta.p
    assert column.arms["c"].summary is None
    assert column.arms["d"].holm_p is None


def with_protocol(store: Store, run_id: str, protocol: str) -> None:
    record = store.run(run_id).record()
    metrics = {f"{one.set}/{name}": found.value for one in record.evaluations for name, found in one.metrics.items()}
    changed = {**dict(record), "evaluations": evaluations(metrics, protocol)}
    store.run(run_id).finish(Record(**changed))


def test_an_arm_of_another_protocol_is_marked_and_compared_with_nothing(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path)
    for run_id in plan.ids("fff").values():
        with_protocol(store, run_id, "p2")
    results = collect(plan, store)
    column = compare_arms(results, METRIC)
    arm = column.arms["fff"]
    assert (column.protocol_id, arm.protocol_id, arm.foreign) == ("shapes-p1", "shapes-p2", True)
    assert (arm.difference, arm.holm_p) == (None, None)
    assert difference_between(column, "fff", "all") is None
    assert "fff" not in [one.arm for one in column.comparable]
    for format in ("terminal", "md", "html", "latex"):
        text = render(results, format).replace("\\textsuperscript{\\dag}", "†")
        assert "± 1.3 †" in text.replace("$\\pm$", "±")
        assert "† Measured under another protocol" in text


def test_a_mean_never_mixes_protocols(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.1, 0.2, 0.3], "b": [0.5, 0.6, 0.9]})
    with_protocol(store, plan.cells["b", 2], "p2")
    results = collect(plan, store)
    arm = compare_arms(results, METRIC).arms["b"]
    assert dict(arm.values) == {0: 0.5, 1: 0.6}
    assert (arm.left_out, arm.foreign) == ((2,), False)
    assert "1 seed of b left out, measured under another protocol" in render(results, "md")


def test_without_a_baseline_result_the_usual_protocol_is_the_columns(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [], "b": [0.5, 0.6], "c": [0.5]})
    with_protocol(store, plan.cells["c", 0], "p2")
    column = compare_arms(collect(plan, store), METRIC)
    assert column.protocol_id == "shapes-p1"
    assert column.arms["c"].foreign
    assert all(arm.difference is None for arm in column.arms.values())


def test_lower_is_better_for_losses(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [2.0, 2.1], "b": [1.5, 1.7]}, metric="shapes/val_loss")
    with registered("zeroshot_classification", MetricDefinition("val_loss", "made up", lambda *_: None)):
        column = compare_arms(collect(plan, store), "shapes/val_loss")
    assert [arm.arm for arm in column.comparable] == ["b", "a"]
    assert column.best == {"b"}


def test_means_that_print_alike_are_both_best(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5], "b": [0.50001], "c": [0.4]})
    assert compare_arms(collect(plan, store), METRIC).best == {"a", "b"}


def test_training_metrics_are_columns_too(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5], "b": [0.6]}, primary="train/loss")
    finish(store, plan.cells["b", 0], {METRIC: 0.6}, final={"loss": 1.25})
    column = compare_arms(collect(plan, store), "train/loss")
    assert dict(column.arms["b"].values) == {0: 1.25}
    assert column.best == {"b"}
