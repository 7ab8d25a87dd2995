"""Arms at chance or at the ceiling are marked, and get no verdict."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from harness.reporting import collect, render
from harness.reporting.collect.comparison import compare_arms
from harness.reporting.sections.document import Document
from harness.runs.metrics import chance_level
from harness.runs.record import EvaluationResult, Metric
from tests.reporting.made import simple

CLAIM = [{"text": "b beats a", "arm": "b", "than": "a"}]


def evaluation(task: Any, protocol: dict[str, Any], **samples: int) -> EvaluationResult:
    metrics = {name.replace("_at_", "@"): Metric(value=0.5, samples=n) for name, n in samples.items()}
    return EvaluationResult(set="s", task=task, protocol_id="p", protocol=protocol, metrics=metrics)


@pytest.mark.parametrize(("name", "expected"), [("acc1", 1 / 8), ("acc5", 5 / 8), ("mean_per_class_recall", 1 / 8)])
def test_chance_among_classes(name: str, expected: float) -> None:
    one = evaluation("zeroshot_classification", {"classnames": {"count": 8}}, acc1=10)
    assert chance_level(one, name) == pytest.approx(expected)
    assert chance_level(evaluation("zeroshot_classification", {}, acc1=10), name) is None
    assert chance_level(evaluation("linear_probe", {}, lp_acc1=10), "lp_acc1") is None


@pytest.mark.parametrize("k", [1, 2, 5])
def test_chance_of_retrieval_is_that_of_drawing(k: int) -> None:
    images, each = 3, 2
    one = evaluation(
        "zeroshot_retrieval", {}, **{f"text_retrieval_recall_at_{k}": images, f"image_retrieval_recall_at_{k}": 6}
    )
    drawn = list(itertools.combinations(range(images * each), k))
    hits = sum(any(caption < each for caption in captions) for captions in drawn) / len(drawn)
    assert chance_level(one, f"text_retrieval_recall@{k}") == pytest.approx(hits)
    assert chance_level(one, f"image_retrieval_recall@{k}") == pytest.approx(min(1, k / images))


@pytest.mark.parametrize(
    ("mean", "level"),
    [
        (0.010, "chance"),
        (1 / 36 + 0.008, "chance"),  # 1,500 samples: two standard errors at chance are .0085
        (1 / 36 + 0.009, ""),
        (0.5, ""),
        (1 - 4 / 1500, ""),
        (1 - 3 / 1500, "ceiling"),
        (1.0, "ceiling"),
    ],
)
def test_levels(tmp_path: Path, mean: float, level: str) -> None:
    column = compare_arms(collect(*simple(tmp_path, {"a": [mean] * 2, "b": [0.5, 0.6]})), "shapes/acc1")
    assert column.arms["a"].level == level


@pytest.mark.parametrize(
    ("values", "word"), [([0.02, 0.021, 0.022], "both at chance"), ([0.999, 1.0, 1.0], "both at the ceiling")]
)
def test_two_arms_at_one_end_get_no_verdict(tmp_path: Path, values: list[float], word: str) -> None:
    better = [value + 0.0001 for value in values] if values[0] < 0.5 else [1.0, 1.0, 1.0]
    results = collect(*simple(tmp_path, {"a": values, "b": better, "c": [0.5, 0.6, 0.55]}, claims=CLAIM))
    document = Document(results)
    assert [one.word for one in document.verdicts] == [word]
    assert document.primary.arms["b"].holm_p is None
    assert document.primary.arms["c"].holm_p == document.primary.arms["c"].difference.p  # type: ignore[union-attr]
    text = render(results, "md")
    assert text.count(word) == 2  # the arm's row, and the claim's
    (claim,) = json.loads(render(results, "json"))["claims"]
    assert (claim["verdict"], claim["p"]) == (word, None)


def test_an_arm_above_chance_is_compared_with_one_at_chance(tmp_path: Path) -> None:
    arms = {"a": [0.02, 0.021, 0.022], "b": [0.30, 0.31, 0.32]}
    assert [one.word for one in Document(collect(*simple(tmp_path, arms, claims=CLAIM))).verdicts] == ["better"]


def test_where_no_arm_is_above_chance_the_answer_says_so(tmp_path: Path) -> None:
    arms = {"a": [0.02, 0.021, 0.022], "b": [0.030, 0.031, 0.032]}
    sentence = Document(collect(*simple(tmp_path, arms))).answer.sentence
    assert sentence == "No arm is above chance in shapes/acc1 (2.8 %): the best, b, reaches 3.1 ± 0.1 %."
