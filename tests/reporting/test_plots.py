from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reporting import Results, collect
from harness.reporting.collect.comparison import compare_arms
from harness.reporting.collect.curves import MOST_POINTS, read_curves
from harness.reporting.collect.factors import factors
from harness.reporting.figures.plots import MOST_ROWS, Figures, Picture
from harness.reporting.figures.svg import SERIES
from harness.reporting.sections.document import Document
from harness.runs.store import Store
from tests.reporting.made import TEACHER, fill, finish, plan_of, simple

AXES = {
    "question": "Do mined positives help at every number of captions?",
    "baseline": "captions.count=0, mining=none",
    "seeds": 2,
    "primary": "shapes/acc1",
    "base": {"loss.kind": "multi_positive_sigmoid", "captions.source": "captioner", "teacher": TEACHER},
    "axes": {
        "captions.count": [0, 1, 5],
        "mining": [
            {"kind": "none"},
            {"kind": "threshold", "image_text": 0.7},
            {"kind": "threshold", "image_text": 0.8},
        ],
    },
}


def pictures(results: Results) -> dict[str, Picture]:
    return {picture.key: picture for picture in Figures(Document(results)).pictures()}


def ablation(root: Path, **fields: Any) -> Results:
    plan, store = plan_of({**AXES, **fields}, "axes"), Store(root)
    fill(plan, store, {arm.name: 0.2 + 0.1 * place for place, arm in enumerate(plan.arms)})
    return collect(plan, store)


@pytest.fixture(scope="module")
def drawn(results: Results) -> dict[str, Picture]:
    return pictures(results)


def test_there_is_a_figure_for_all_that_was_measured(drawn: dict[str, Picture]) -> None:
    assert list(drawn) == [
        "forest",
        "seeds",
        "pareto-hours",
        "pareto-seconds",
        "curve-loss",
        "curve-shapes-acc1",
        "curve-mining-precision",
        "mining",
    ]


def test_nothing_is_drawn_without_data(tmp_path: Path) -> None:
    assert pictures(collect(*simple(tmp_path / "empty", {"a": [math.nan]}))) == {}
    assert list(pictures(collect(*simple(tmp_path / "one", {"a": [0.5]})))) == ["seeds"]


def test_figures_follow_the_pages_colours_and_share_no_id(drawn: dict[str, Picture]) -> None:
    ids = [found for picture in drawn.values() for found in re.findall(r'\bid="([^"]+)"', picture.svg)]
    assert len(ids) == len(set(ids))
    for picture in drawn.values():
        assert "var(--series-0)" in picture.svg
        assert not re.search(r"#0[0-5]0[0-5]0[0-9a-f]\b", picture.svg)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg)) <= set(ids)
        assert "<text" in picture.svg
        assert "font-family" not in picture.svg


def test_an_arm_has_one_colour_in_all_figures(results: Results) -> None:
    styles = Figures(Document(results)).styles
    assert len({style.colour for style in styles.values()}) == len(styles) == 5
    assert [arm for arm, style in styles.items() if style.dashed] == ["clip"]


def test_the_forest_has_the_reports_numbers(results: Results, drawn: dict[str, Picture]) -> None:
    for arm in Document(results).primary.arms.values():
        if arm.difference and arm.difference.interval:
            low, high = 100 * arm.difference.interval.low, 100 * arm.difference.interval.high
            assert f"{100 * arm.difference.mean:+.1f} [{low:.1f}, {high:.1f}]" in drawn["forest"].svg


def test_a_numeric_axis_has_a_line_for_each_level_of_the_others(tmp_path: Path) -> None:
    results = ablation(tmp_path)
    column = Document(results).primary
    (factor,) = factors(results, column)
    assert factor.axis == "captions.count"
    assert [[x for x, _ in line.points] for line in factor.lines] == [[0, 1, 5]] * 3
    labels = [line.label for line in factor.lines]
    assert len(set(labels)) == 3
    assert "mining none" in labels
    by_arm = {arm.name: column.arms[arm.name].summary for arm in results.plan.arms}
    line = next(line for line in factor.lines if line.label == "mining none")
    none = [name for name in by_arm if name.endswith("mining=none")]
    assert [summary for _, summary in line.points] == [by_arm[name] for name in none]
    assert "factor-0" in pictures(results)


def test_one_factor_at_a_time_gives_each_numeric_axis_its_line(tmp_path: Path) -> None:
    axes = {"captions.count": [0, 1, 5], "train.optimiser.lr": [0.001, 0.002]}
    baseline = "captions.count=0, train.optimiser.lr=0.001"
    results = ablation(tmp_path, axes=axes, combine="one_at_a_time", baseline=baseline)
    found = {one.axis: [[x for x, _ in line.points] for line in one.lines] for one in factors_of(results)}
    assert found == {"captions.count": [[0, 1, 5]], "train.optimiser.lr": [[0.001, 0.002]]}


def test_quantiles_are_numbers_and_switches_are_not(tmp_path: Path) -> None:
    levels = [{"quantile": 0.9}, {"quantile": 0.99}]
    axes = {"mining.image_text": levels, "loss.learn_logit_bias": [True, False]}
    base: dict[str, Any] = {"loss.kind": "multi_positive_sigmoid", "mining.kind": "threshold", "teacher": TEACHER}
    first = 'mining.image_text={"quantile": 0.9}, loss.learn_logit_bias=true'
    plan = plan_of({**AXES, "axes": axes, "base": base, "baseline": first})
    store = Store(tmp_path)
    fill(plan, store, {arm.name: 0.5 for arm in plan.arms})
    (factor,) = factors_of(collect(plan, store))
    assert [x for x, _ in factor.lines[0].points] == [0.9, 0.99]


def factors_of(results: Results) -> list[Any]:
    return factors(results, Document(results).primary)


def test_curves_are_means_over_seeds_at_common_steps(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5, 0.6], "b": [0.5, math.nan]})
    for seed, steps in ((0, (10, 20, 30)), (1, (10, 30))):
        for step in steps:
            store.run(plan.cells["a", seed]).append_metrics(step, {"loss": step + seed})
    store.run(plan.cells["b", 0]).append_metrics(10, {"loss": 1.0})
    for run_id in (*plan.ids("a").values(), plan.cells["b", 0]):
        finish(store, run_id, {"shapes/acc1": 0.5})
    found = read_curves(collect(plan, store), ["a", "b"], ["loss", "shapes/acc1"])
    assert list(found) == ["loss"]
    (curve,) = found["loss"]
    assert curve.steps.tolist() == [10, 30]
    assert curve.mean.tolist() == [10.5, 30.5]
    assert (curve.low.tolist(), curve.high.tolist()) == ([10, 30], [11, 31])


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5]})
    lines = [f'{{"step": {step}, "time": 0, "values": {{"loss": {step % 7}}}}}\n' for step in range(1000)]
    store.run(plan.cells["a", 0]).metrics.write_text("".join(lines))
    finish(store, plan.cells["a", 0], {"shapes/acc1": 0.5})
    (curve,) = read_curves(collect(plan, store), ["a"], ["loss"])["loss"]
    assert len(curve.mean) == MOST_POINTS
    assert curve.mean.mean() == pytest.approx(np.mean([step % 7 for step in range(1000)]))
    assert curve.mean[0] == pytest.approx(np.mean([0, 1, 2, 3, 4]))


def test_many_arms_are_cut_and_it_is_said(tmp_path: Path) -> None:
    arms = {f"arm{place}": [0.001 * place] for place in range(MOST_ROWS + 5)}
    plan, store = simple(tmp_path, arms)
    results = collect(plan, store)
    assert len(Figures(Document(results)).styles) == SERIES + 1
    found = pictures(results)
    assert f"The best {MOST_ROWS} of {MOST_ROWS + 5} arms; the table has all." in found["seeds"].caption
    assert ">arm44<" in found["seeds"].svg
    assert ">arm1<" not in found["seeds"].svg


def test_mining_is_drawn_where_its_truth_is_known(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5], "b": [0.6]})
    finish(store, plan.cells["b", 0], {"shapes/acc1": 0.6}, final={"mining_precision": 0.875, "mining_recall": 0.25})
    found = pictures(collect(plan, store))
    assert "87.5 / 25.0" in found["mining"].svg
    assert "b: precision 87.5, recall 25.0" in found["mining"].svg


def test_two_factors_of_three_levels_make_a_heat_map(tmp_path: Path) -> None:
    axes = {"captions.count": [1, 2, 5], "train.optimiser.lr": [0.001, 0.002, 0.004]}
    table = {
        "question": "Where is the best?",
        "baseline": "captions.count=1, train.optimiser.lr=0.001",
        "seeds": 2,
        "primary": "shapes/acc1",
        "base": {"captions.source": "captioner"},
        "axes": axes,
    }
    plan, store = plan_of(table), Store(tmp_path)
    fill(plan, store, {arm.name: 0.2 + 0.05 * place for place, arm in enumerate(plan.arms)})
    heat = pictures(collect(plan, store))["heat"]
    described = heat.svg.partition("<desc")[2].partition("</desc>")[0]
    means = {arm.arm: arm.summary for arm in compare_arms(collect(plan, store), "shapes/acc1").comparable}
    assert described.count("captions.count ") == len(means) == 9
    best = means["captions.count=5, train.optimiser.lr=0.004"]
    assert best is not None
    assert f"captions.count 5, train.optimiser.lr 0.004: {100 * best.mean:.1f}" in described
