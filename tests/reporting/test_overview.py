"""What the page answers a reviewer at once: what was compared, how, and what is missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.reporting import Document, collect, render
from harness.reporting.collect.results import Results
from harness.runs.store import Store
from tests.reporting.made import LEVELS, QUICKSTART, fill, plan_of, simple

CLAIM = {"text": "b is better", "arm": "b", "than": "a"}


def answers(results: Results) -> dict[str, str]:
    return dict(Document(results).overview)


def test_every_question_of_a_reviewer_has_its_answer(results: Results) -> None:
    assert answers(results) == {
        "Compared": "5 arms in shapes/acc1 (higher is better). The baseline is “CLIP, raw captions”.",
        "What differs": "loss, mining, teacher and captions. Every other field that can change a result is equal in "
        "all arms.",
        "Seeds": "3 an arm, the same in all arms; differences are taken seed by seed.",
        "Test": "Two-sided t-test, variances shared among arms; Holm's correction for all 4 claims, 5 %. "
        "Intervals cover 95 % over new seeds.",
        "Margin": "1 point: differences that are shown to be smaller count as equal.",
        "Open or missing": "All 15 runs are done. 1 claim not attributable.",
        "Check it": "harness verify SPEC derives every number again from the outcomes of single samples.",
    }


@pytest.mark.parametrize(
    ("fields", "keyword", "answer"),
    [
        ({}, "Margin", "None was declared, so no claim can end as equal."),
        ({"claims": []}, "Margin", ""),
        ({"claims": []}, "Test", "Two-sided t-test, variances shared among arms; Holm's correction for all arms"),
        ({"estimation": "paired"}, "Test", "Two-sided paired t-test; Holm's correction for 1 claim, 5 %. "),
        ({"margin": "2 points"}, "Margin", "2 points: differences that are shown to be smaller count as equal."),
        ({}, "Open or missing", "1 of 4 runs missing. 1 claim open."),
        ({"seeds": {"until": "decided", "least": 2, "most": 6}}, "Seeds", "2 to 6 an arm, added until the claims "),
        ({"seeds": {"until": "decided", "least": 2, "most": 6}}, "Test", "Two-sided t-test, variances shared among "
         "arms; group-sequential (Lan-DeMets), Holm's correction for 1 claim, 5 % over all looks. "),
    ],
)  # fmt: skip
def test_the_answers_follow_the_plan(tmp_path: Path, fields: dict[str, Any], keyword: str, answer: str) -> None:
    found = answers(
        collect(*simple(tmp_path, {"a": [0.5, math.nan], "b": [0.6, 0.5]}, **{"claims": [CLAIM], **fields}))
    )
    assert found.get(keyword, "").startswith(answer)
    assert bool(answer) == (keyword in found)


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    found = answers(collect(*simple(tmp_path, {"a": [0.5], "b": [0.6]}, "shapes/loss")))
    assert found["Seeds"] == "1 an arm. One seed shows no spread, so nothing can be claimed."
    assert "lower is better" in found["Compared"]
    assert "Test" not in found


def test_a_report_without_claims_opens_the_table_of_arms(tmp_path: Path) -> None:
    page = render(collect(*simple(tmp_path, {"a": [0.5, 0.4], "b": [0.6, 0.5]})), "html")
    assert '<details class="section" id="results" open>' in page
    assert 'id="verdicts"' not in page


def test_an_equal_verdict_has_its_own_p(tmp_path: Path) -> None:
    levels = {**LEVELS, "fff": LEVELS["all"]}
    plan = plan_of({**QUICKSTART, "claims": [{**QUICKSTART["claims"][3], "margin": "40 points"}]})  # type: ignore[index]
    store = Store(tmp_path)
    fill(plan, store, levels)
    page = render(collect(plan, store), "html")
    assert '<strong class="verdict equal">equal</strong>' in page
    assert "within 40 points. " in page
    assert ", p of inequality &lt; 0.001</span>" in page
