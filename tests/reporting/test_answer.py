from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.evaluation.registry import MetricDefinition, registered
from harness.reporting import collect
from harness.reporting.sections.document import Document
from tests.reporting.made import simple
from tests.reporting.test_comparison import with_protocol

LOSS = MetricDefinition("loss", "made up", lambda *_: None)
BASE = [0.20, 0.22, 0.21]
GONE = [math.nan] * 3


def document(root: Path, arms: dict[str, list[float]], **fields: Any) -> Document:
    return Document(collect(*simple(root, arms, **fields)))


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": BASE, "b": [0.30, 0.33, 0.32]}, "b is best in shapes/acc1: 31.7 ± 1.5 %, +10.7 points [9.2, 12.1]"),
        (
            {"a": BASE, "b": [0.20, 0.25, 0.19]},
            "cannot be told apart from a with 3 seeds (about 447 more seeds needed)",
        ),
        ({"a": BASE, "b": [0.10, 0.13, 0.11]}, "No arm is shown to be better than a, which has the best mean"),
        ({"a": [0.2], "b": [0.9]}, "Nothing can be claimed from one seed: b comes out at +70.0 points (one seed)"),
        ({"a": GONE, "b": [0.5, 0.6, 0.7]}, "The baseline a has no result in shapes/acc1; b is highest: 60.0 ± 10.0 %"),
        ({"a": BASE, "b": GONE}, "So far, with 3 of 6 runs: Only a has a result in shapes/acc1"),
        ({"a": BASE}, "a reaches 21.0 ± 1.0 % in shapes/acc1 (3 seeds)."),
        ({"a": GONE, "b": GONE}, "There is no answer yet"),
        ({"a": BASE, "b": [0.30, 0.33, math.nan]}, "So far, with 5 of 6 runs: "),
    ],
)
def test_the_answer_says_what_the_numbers_bear(tmp_path: Path, arms: dict[str, list[float]], said: str) -> None:
    assert said in document(tmp_path, arms).answer.sentence


def test_an_arm_that_is_shown_is_named_beside_a_noisy_one_with_a_higher_mean(tmp_path: Path) -> None:
    arms = {"a": BASE, "noisy": [0.2, 0.9, 0.5], "steady": [0.30, 0.33, 0.32]}
    sentence = document(tmp_path, arms).answer.sentence
    assert sentence.startswith("noisy has the best mean")
    assert sentence.endswith("; steady can.")


def test_holm_decides_and_not_the_interval_of_one_arm(tmp_path: Path) -> None:
    # p is about .03 alone and about .09 as one of three comparisons
    base = [0.20, 0.22, 0.21]
    arms = {"a": base, "b": [0.24, 0.27, 0.24], "c": [0.2, 0.21, 0.23], "d": [0.19, 0.23, 0.2]}
    found = document(tmp_path, arms)
    delta = found.primary.arms["b"].difference
    assert delta is not None
    assert delta.interval is not None
    assert delta.interval.excludes_zero
    assert "b has the best mean" in found.answer.sentence
    assert "cannot be told apart from a" in found.answer.sentence


def test_the_runner_up_is_compared_with_the_best(tmp_path: Path) -> None:
    arms = {"a": BASE, "b": [0.40, 0.43, 0.42], "c": [0.41, 0.41, 0.42]}
    details = document(tmp_path, arms).answer.details
    assert details[0].startswith("Of 2 other arms, 2 are shown to be better than the baseline")
    assert details[1].startswith("b and the runner-up c cannot be told apart: +0.3 points [")


def test_where_nothing_can_be_told_apart_it_is_said_in_one_go(tmp_path: Path) -> None:
    found = document(tmp_path, {"a": BASE, "b": [0.20, 0.25, 0.19], "c": [0.19, 0.24, 0.2]})
    assert found.answer.details[0].startswith("Not one of the 2 other arms can be told apart from the baseline (")


def test_an_arm_called_in_several_words_stands_in_quotation_marks(tmp_path: Path) -> None:
    labels = {"a": "raw captions", "b": "mined, raw captions"}
    sentence = document(tmp_path, {"a": BASE, "b": [0.30, 0.33, 0.32]}, labels=labels).answer.sentence
    assert sentence.startswith("“mined, raw captions” is best")
    assert "against “raw captions” (" in sentence


def test_nothing_is_no_negative_number(tmp_path: Path) -> None:
    found = document(tmp_path, {"a": [0.2000, 0.2100, 0.2200], "b": [0.1999, 0.2098, 0.2199]})
    assert "+0.0 points [0.0, 0.0]" in found.answer.sentence


def test_a_lower_loss_is_the_better_one(tmp_path: Path) -> None:
    arms = {"a": [2.0, 2.2, 2.1], "b": [1.5, 1.72, 1.61]}
    with registered("zeroshot_classification", LOSS):
        found = document(tmp_path, arms, metric="shapes/loss")
    assert found.answer.sentence.startswith("b is best in shapes/loss: 1.610 ± 0.110, -0.490 [")


def claims(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": f"{arm} beats {than}", "arm": arm, "than": than} for arm, than in pairs]


def test_a_claim_is_judged_by_its_own_paired_interval(tmp_path: Path) -> None:
    arms = {"a": BASE, "b": [0.30, 0.33, 0.32], "c": [0.2, 0.25, 0.19], "d": GONE}
    found = document(tmp_path, arms, claims=claims(("b", "a"), ("a", "b"), ("c", "a"), ("d", "a"), ("b", "c")))
    assert [one.word for one in found.verdicts] == ["holds", "opposite", "not settled", "no result", "holds"]
    assert found.verdicts[2].text == "not settled (about 447 more seeds needed)"


def test_a_claim_about_a_loss_holds_where_it_is_lower(tmp_path: Path) -> None:
    arms = {"a": [2.0, 2.2, 2.1], "b": [1.5, 1.72, 1.61]}
    with registered("zeroshot_classification", LOSS):
        found = document(tmp_path, arms, metric="shapes/loss", claims=claims(("b", "a")))
    assert [one.word for one in found.verdicts] == ["holds"]


def test_one_seed_settles_no_claim(tmp_path: Path) -> None:
    found = document(tmp_path, {"a": [0.2], "b": [0.9]}, claims=claims(("b", "a")))
    assert found.verdicts[0].text == "not settled (one seed tells nothing)"


def test_a_claim_across_protocols_is_not_comparable(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": BASE, "b": [0.30, 0.33, 0.32]}, claims=claims(("b", "a")))
    for run_id in plan.ids("b").values():
        with_protocol(store, run_id, "p2")
    found = Document(collect(plan, store))
    assert [one.word for one in found.verdicts] == ["not comparable"]
    assert "Only a has a result in shapes/acc1 that can be compared" in found.answer.sentence


def test_a_claim_may_name_its_own_metric(tmp_path: Path) -> None:
    arms = {"a": BASE, "b": [0.30, 0.33, 0.32]}
    stated = [{"text": "loss falls", "arm": "b", "than": "a", "metric": "train/loss"}]
    assert document(tmp_path, arms, claims=stated).verdicts[0].metric == "train/loss"
