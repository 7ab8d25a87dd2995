from __future__ import annotations

import pytest

from harness.base.errors import SpecError
from harness.reporting import compare
from tests.reporting.made import evaluations, record_of

ONE = {"captions": {"count": 0, "raw": True}, "loss": {"kind": "infonce"}, "seed": 0}
TWO = {"captions": {"count": 5, "raw": True}, "loss": {"kind": "sigmoid", "bias": -10}, "seed": 0}


def lines(text: str, first: str) -> list[list[str]]:
    """The cells of the rows that begin with `first`."""
    split = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines())
    return [cells for cells in split if cells and cells[0] == first]


def test_specs_metrics_and_cost_stand_side_by_side() -> None:
    runs = [
        ("run1", record_of("run1", {"shapes/acc1": 0.25}), ONE),
        ("run2", record_of("run2", {"shapes/acc1": 0.5, "shapes/acc5": 0.75}, steps=150), TWO),
    ]
    text = compare(runs)
    assert lines(text, "captions.count") == [["captions.count", "0", "5"]]
    assert lines(text, "loss.kind") == [["loss.kind", '"infonce"', '"sigmoid"']]
    assert lines(text, "loss.bias") == [["loss.bias", "–", "-10"]]
    assert lines(text, "captions.raw") == []
    assert lines(text, "shapes/acc1 (%)") == [["shapes/acc1 (%)", "25.0 (1.1)", "50.0 (1.3)"]]
    assert lines(text, "shapes/acc5 (%)") == [["shapes/acc5 (%)", "–", "75.0 (1.1)"]]
    assert lines(text, "train/loss") == [["train/loss", "2.500", "2.500"]]
    assert lines(text, "steps") == [["steps", "300", "150"]]
    assert lines(text, "torch") == [["torch", "2.15.0", "2.15.0"]]


def test_another_protocol_is_marked() -> None:
    other = record_of("b", {}, evaluations=evaluations({"shapes/acc1": 0.5}, "p2"))
    text = compare([("a", record_of("a", {"shapes/acc1": 0.25}), ONE), ("b", other, ONE)])
    assert lines(text, "shapes/acc1 (%)") == [["shapes/acc1 (%)", "25.0 (1.1)", "50.0 (1.3) †"]]
    assert "† Measured under another protocol than the first run's" in text
    assert "The specs are the same." in text


def test_true_and_one_are_different_settings() -> None:
    record = record_of("a", {})
    text = compare([("a", record, {"x": 1}), ("b", record, {"x": True})])
    assert lines(text, "x") == [["x", "1", "true"]]


def test_three_runs_have_three_columns_and_text_is_taken_literally() -> None:
    runs = [
        (name, record_of(name, {"shapes/acc1": 0.5}), {"path": value})
        for name, value in (("a", "x"), ("b", "\x1b[31my"), ("c", "z"))
    ]
    text = compare(runs)
    assert "\x1b" not in text
    assert len(lines(text, "path")[0]) == 4


def test_two_runs_under_one_name_are_refused() -> None:
    runs = [("a", record_of("a", {}), ONE), ("b", record_of("b", {}), TWO), ("a", record_of("a", {}), ONE)]
    with pytest.raises(SpecError, match="two of the runs to compare are called 'a'"):
        compare(runs)
