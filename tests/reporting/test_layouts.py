"""Factors laid out as the paper lays them out, sets side by side, and which factor matters."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.planning.plan import Plan
from harness.reporting import collect, render
from harness.reporting.collect.design import design_of
from harness.reporting.formats.table import Table
from harness.reporting.sections.document import Document
from harness.reporting.sections.layouts import grid_table, suite_table
from harness.runs.store import Store
from tests.reporting.made import MINED, SIGMOID, finish, plan_of

ARMS = [f"mining.kind={mining}, captions.count={count}" for mining in ("none", "threshold") for count in (0, 1, 5)]
PAPER = [0.186, 0.233, 0.311, 0.213, 0.268, 0.329]
MEANS = [0.20, 0.24, 0.30, 0.25, 0.28, 0.31]
SHAKE = (-0.01, 0.0, 0.02)


def table4(root: Path, **changes: Any) -> tuple[Plan, Store]:
    table = {
        "question": "Does mining help at every number of captions?",
        "baseline": ARMS[0],
        "seeds": 3,
        "primary": "imagenet1k/acc1",
        "base": {**SIGMOID, **MINED, "captions.source": "captioner"},
        "axes": {"mining.kind": ["none", "threshold"], "captions.count": [0, 1, 5]},
        "references": [
            {"arm": arm, "metric": "imagenet1k/acc1", "value": value, "source": "FFF Table 4"}
            for arm, value in zip(ARMS, PAPER, strict=True)
        ],
    }
    plan, store = plan_of({**table, **changes}, "table4", sets=["imagenet1k"]), Store(root)
    for (arm, seed), run_id in plan.cells.items():
        if arm in ARMS:
            noise = 0.002 * ((ARMS.index(arm) * (seed + 1)) % 5)
            finish(store, run_id, {"imagenet1k/acc1": MEANS[ARMS.index(arm)] + SHAKE[seed] + noise})
    return plan, store


def texts(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}


def test_table_4_is_mining_by_captions_with_the_papers_numbers_and_differences(tmp_path: Path) -> None:
    document = Document(collect(*table4(tmp_path)))
    found = texts(grid_table(document.results, document.primary))
    means = [document.primary.arms[arm].summary for arm in ARMS[:3]]
    assert [text.split(" ")[0] for text in found["none"]] == [f"{100 * one.mean:.1f}" for one in means if one]
    assert found["none, reported ‡"] == ["18.6", "23.3", "31.1"]
    assert found["threshold, reported ‡"] == ["21.3", "26.8", "32.9"]
    assert found["threshold − none, reported ‡"] == ["+2.7", "+3.5", "+1.8"]
    delta = document.primary.arms[ARMS[3]].difference
    assert delta is not None
    assert found["threshold − none"][0].startswith(f"+{100 * delta.mean:.1f} [")


def test_latex_has_the_factor_over_its_levels(tmp_path: Path) -> None:
    latex = render(collect(*table4(tmp_path)), "latex")
    assert r"& \multicolumn{3}{c}{captions.count} \\" in latex
    assert r"\cmidrule(lr){2-4}" in latex
    assert r"mining & 0 & 1 & 5 \\" in latex
    page = render(collect(*table4(tmp_path)), "html")
    assert re.search(r'<th scope="colgroup" colspan="3" class="group">captions.count</th>', page)


def test_one_factor_is_one_row_with_differences_to_its_first_level(tmp_path: Path) -> None:
    axes = {"captions.count": [0, 1, 5]}
    plan = plan_of(
        {
            "question": "How many captions?",
            "baseline": "captions.count=0",
            "seeds": 2,
            "primary": "imagenet1k/acc1",
            "base": {"captions.source": "captioner"},
            "axes": axes,
        },
        sets=["imagenet1k"],
    )
    store = Store(tmp_path)
    for (arm, seed), run_id in plan.cells.items():
        finish(
            store, run_id, {"imagenet1k/acc1": {"0": 0.2, "1": 0.25, "5": 0.3}[arm[-1]] + 0.01 * seed * int(arm[-1])}
        )
    document = Document(collect(plan, store))
    found = texts(grid_table(document.results, document.primary))
    assert [text.split(" ")[0] for text in found["measured"]] == ["20.0", "25.5", "32.5"]
    assert [text.split(" ")[0] for text in found["− 0"]] == ["–", "+5.5", "+12.5"]


def test_factors_are_weighed_and_their_interaction_named(tmp_path: Path) -> None:
    document = Document(collect(*table4(tmp_path)))
    shares = {one.name: one.effect.share for one in document.effects}
    assert list(shares) == ["captions.count", "mining", "mining × captions.count"]
    assert shares["captions.count"] > shares["mining"] > shares["mining × captions.count"]
    assert "captions.count matters most" in document.answer.details[-1]
    assert "the effect of mining depends on captions.count: " in document.answer.details[-1]
    contrast = document.effects[-1].contrast
    assert contrast is not None
    deltas = {arm: document.primary.arms[arm].values for arm in ARMS}
    by_hand = [
        (deltas[ARMS[5]][seed] - deltas[ARMS[2]][seed]) - (deltas[ARMS[3]][seed] - deltas[ARMS[0]][seed])
        for seed in range(3)
    ]
    assert contrast[1].mean == pytest.approx(sum(by_hand) / 3)


def test_designs_that_are_no_grid_have_none(tmp_path: Path) -> None:
    document = Document(collect(*table4(tmp_path, combine="one_at_a_time", references=[])))
    assert grid_table(document.results, document.primary) is None
    assert design_of(document.ablation).factors


@pytest.mark.parametrize("name", ["fff_table4", "fff_table5", "fff_table6", "mining_thresholds", "fff_table1"])
def test_shipped_designs_name_their_arms(name: str) -> None:
    from harness.planning.workspace import Project

    spec = Path("ablations") / f"{name}.toml"
    assert tomllib.loads(spec.read_text(encoding="utf-8"))["question"]
    ablation = Project.at(spec.parent).plan(spec, [], provisional=True).ablation
    design = design_of(ablation)
    known = {arm for arm, _ in ablation.variants()}
    assert set(design.places) <= known
    assert bool(design.factors) == bool(ablation.axes)
    if design.factors:
        assert set(design.places) == known


SETS = ("cifar10/acc1", "pets/mean_per_class_recall", "cars/acc1")


def eleven(root: Path, *, hole: bool = False) -> Document:
    table = {
        "question": "How well does it classify?",
        "baseline": "clip",
        "seeds": 2,
        "primary": "imagenet1k/acc1",
        "secondary": list(SETS),
        "arms": {"clip": {}, "fff": {"train.optimiser.lr": 0.002}},
        "references": [
            {"arm": "clip", "metric": metric, "value": value, "source": "Table 1"}
            for metric, value in zip((*SETS, "imagenet1k/acc1"), (0.637, 0.201, 0.026, 0.328), strict=True)
        ],
    }
    sets = [metric.partition("/")[0] for metric in (*SETS, "imagenet1k/acc1")]
    plan, store = plan_of(table, sets=sets), Store(root)
    for (arm, seed), run_id in plan.cells.items():
        start = 0.5 if arm == "fff" else 0.4
        metrics = {metric: start + 0.1 * place + 0.02 * seed for place, metric in enumerate(SETS)}
        if hole and arm == "fff":
            del metrics["cars/acc1"]
        finish(store, run_id, {**metrics, "imagenet1k/acc1": start})
    return Document(collect(plan, store))


def test_table_1_is_sets_side_by_side_imagenet_last_and_the_average(tmp_path: Path) -> None:
    document = eleven(tmp_path)
    table = suite_table(document.results, document.shown)
    found = texts(table)
    assert table is not None
    assert [head.text for head in table.heads] == ["Arm", "CIFAR-10", "Pets", "Cars", "ImageNet", "average"]
    assert found["clip"][:4] == ["41.0", "51.0", "61.0", "40.0"]
    assert found["clip, reported"] == ["63.7", "20.1", "2.6", "32.8", "29.8"]
    by_hand = [((0.4 + 0.5 + 0.6 + 3 * 0.02 * seed) + 0.4) / 4 for seed in range(2)]
    assert float(found["clip"][4].split(" ")[0]) == pytest.approx(50 * sum(by_hand), abs=0.051)


def test_an_average_with_a_hole_is_no_average(tmp_path: Path) -> None:
    document = eleven(tmp_path, hole=True)
    found = texts(suite_table(document.results, document.shown))
    assert found["fff"][2:] == ["not measured", "50.0", "–"]
    assert found["clip"][4] != "–"
