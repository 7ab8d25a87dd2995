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
        ({"a": BASE, "b": [0.30, 0.33, 0.32]}, "b is best in shapes/acc1: 31.7 ± 1.5 %, +10.7 points [8.2, 13.1]"),
        (
            {"a": BASE, "b": [0.20, 0.25, 0.19]},
            "b has the best mean, +0.3 points [-6.9, 7.6], but cannot be told apart from a with 3 seeds.",
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
    # p is about .03 alone and about .08 as one of three comparisons
    base = [0.20, 0.22, 0.21]
    arms = {"a": base, "b": [0.22, 0.26, 0.24], "c": [0.2, 0.21, 0.23], "d": [0.19, 0.23, 0.2]}
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
    assert "is at +0.0 points [-1.1, 1.1]" in found.answer.sentence


def test_a_lower_loss_is_the_better_one(tmp_path: Path) -> None:
    arms = {"a": [2.0, 2.2, 2.1], "b": [1.5, 1.72, 1.61]}
    with registered("zeroshot_classification", LOSS):
        found = document(tmp_path, arms, metric="shapes/loss")
    assert found.answer.sentence.startswith("b is best in shapes/loss: 1.610 ± 0.110, -0.490 [")


def claims(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": f"{arm} beats {than}", "arm": arm, "than": than} for arm, than in pairs]


def test_a_claim_is_judged_by_its_own_difference(tmp_path: Path) -> None:
    arms = {"a": BASE, "b": [0.30, 0.33, 0.32], "c": [0.2, 0.25, 0.19], "d": GONE}
    found = document(tmp_path, arms, claims=claims(("b", "a"), ("a", "b"), ("c", "a"), ("d", "a"), ("b", "c")))
    assert [one.word for one in found.verdicts] == ["better", "worse", "open", "no result", "better"]


def test_a_claim_about_a_loss_holds_where_it_is_lower(tmp_path: Path) -> None:
    arms = {"a": [2.0, 2.2, 2.1], "b": [1.5, 1.72, 1.61]}
    with registered("zeroshot_classification", LOSS):
        found = document(tmp_path, arms, metric="shapes/loss", claims=claims(("b", "a")))
    assert [one.word for one in found.verdicts] == ["better"]


def test_one_seed_settles_no_claim(tmp_path: Path) -> None:
    found = document(tmp_path, {"a": [0.2], "b": [0.9]}, claims=claims(("b", "a")))
    assert found.verdicts[0].text == "open (one seed shows no spread)"


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


def test_equal_within_the_margin_comes_before_better(tmp_path: Path) -> None:
    arms = {"a": [0.500, 0.501, 0.502], "b": [0.504, 0.505, 0.506], "c": [0.503, 0.501, 0.502]}
    more = claims(("b", "a"), ("c", "a"))
    found = document(tmp_path, arms, claims=more, margin="1 point")
    assert [one.text for one in found.verdicts] == ["equal within 1 point", "equal within 1 point"]
    assert found.verdicts[0].p is not None
    assert found.verdicts[0].p < 0.05  # it differs, by less than matters
    assert [one.word for one in document(tmp_path / "other", arms, claims=more).verdicts] == ["better", "open"]


def test_claims_are_corrected_as_one_family(tmp_path: Path) -> None:
    arms = {"a": BASE, "b": [0.22, 0.25, 0.23], "c": [0.2, 0.22, 0.21], "d": [0.21, 0.23, 0.2]}
    alone = document(tmp_path / "1", arms, claims=claims(("b", "a"))).verdicts
    family = document(tmp_path / "3", arms, claims=claims(("b", "a"), ("c", "d"), ("d", "a"))).verdicts
    assert alone[0].p is not None
    assert family[0].p == pytest.approx(3 * alone[0].p)
    assert [alone[0].word, family[0].word] == ["better", "open"]


def test_a_claim_whose_arms_differ_in_more_is_not_attributed(tmp_path: Path) -> None:
    changes = {"a": {}, "b": {"train.optimiser.lr": 0.002, "loss.kind": "sigmoid"}}
    stated = {"text": "?", "arm": "b", "than": "a"}
    values = {"a": BASE, "b": [0.30, 0.33, 0.32]}
    more = [{**stated, "factor": "loss"}, stated]
    found = Document(collect(*simple(tmp_path / "1", values, arms=changes, claims=more)))
    assert [one.text for one in found.verdicts] == [
        "not attributable to loss: train.optimiser.lr differs too",
        "not attributable: loss.kind and train.optimiser.lr differ",
    ]
    assert found.answer.sentence.endswith("; they differ in loss.kind and train.optimiser.lr.")
    whole = [{**stated, "compares": "systems"}]
    systems = Document(collect(*simple(tmp_path / "2", values, arms=changes, claims=whole)))
    assert [(one.word, one.subject) for one in systems.verdicts] == [("better", "whole systems")]
