"""Arms: by name, by axes, by both; their names; what an ablation may name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.config.ablation import Ablation
from harness.config.axes import check_axes, named_cells
from harness.config.explain import explain
from tests.head.made import ablation, experiment

COUNT, SCHEDULE = "captions.count", "train.schedule"
AXES = {COUNT: [0, 1, 5], SCHEDULE: ["cosine", "linear"]}
LEVELS = [(0, "cosine"), (0, "linear"), (1, "cosine"), (1, "linear"), (5, "cosine"), (5, "linear")]


def arms(**stated: Any) -> dict[str, Any]:
    one = Ablation.model_validate({"question": "?", "experiment": experiment(), "primary": "m", **stated})
    return dict(one.variants())


def refused(**stated: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        arms(**stated)
    return str(explain(caught.value, Ablation, where="f"))


def named(count: int, schedule: str) -> str:
    return f"{COUNT}={count}, {SCHEDULE}={schedule}"


def test_product() -> None:
    found = arms(axes=AXES, baseline=named(0, "cosine"))
    assert list(found) == [named(*levels) for levels in LEVELS]
    assert found[named(5, "linear")] == {"captions": {"count": 5}, "train": {"schedule": "linear"}}


def test_zip() -> None:
    axes = {COUNT: [0, 1], SCHEDULE: ["cosine", "linear"]}
    assert list(arms(axes=axes, combine="zip", baseline=named(0, "cosine"))) == [named(0, "cosine"), named(1, "linear")]


def test_one_factor_at_a_time() -> None:
    found = arms(axes=AXES, combine="one_at_a_time", baseline=named(0, "cosine"))
    assert list(found) == [named(0, "cosine"), named(1, "cosine"), named(5, "cosine"), named(0, "linear")]


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ({COUNT: 0, SCHEDULE: "linear"}, LEVELS[:1] + LEVELS[2:]),
        ({COUNT: 0}, LEVELS[2:]),
        ({COUNT: [0, 5], SCHEDULE: "linear"}, [LEVELS[0], *LEVELS[2:5]]),
    ],
)
def test_exclude(rule: dict[str, Any], left: list[tuple[int, str]]) -> None:
    found = arms(axes=AXES, exclude=[rule], baseline=named(1, "cosine"))
    assert list(found) == [named(*levels) for levels in left]


def test_named_arms_times_axes() -> None:
    stated = {"plain": {}, "mined": {"mining.kind": "none", "captions": {"mixing": "sample"}}}
    found = arms(arms=stated, axes={COUNT: [0, 1]}, baseline="plain, captions.count=1")
    assert list(found) == [f"{name}, {COUNT}={count}" for name in stated for count in (0, 1)]
    assert found["mined, captions.count=1"] == {
        "mining": {"kind": "none"},
        "captions": {"mixing": "sample", "count": 1},
    }


def test_an_axis_goes_over_what_its_arm_says() -> None:
    found = arms(arms={"a": {COUNT: 7}}, axes={COUNT: [0]}, baseline=f"a, {COUNT}=0")
    assert found[f"a, {COUNT}=0"] == {"captions": {"count": 0}}


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        (["a", "b"], ["a", "b"]),
        ([1, 1.5, True, [1, 2]], ["1", "1.5", "true", "[1, 2]"]),
        ([{"kind": "none"}, {"kind": "threshold", "image_text": 0.3}], ["none", "threshold"]),
        (
            [{"kind": "none"}, {"kind": "threshold", "image_text": 0.3}, {"image_text": 0.2, "kind": "threshold"}],
            ["none", 'threshold {"image_text": 0.3}', 'threshold {"image_text": 0.2}'],
        ),
        ([{"quantile": 0.9}, {"quantile": 0.99}], ['{"quantile": 0.9}', '{"quantile": 0.99}']),
    ],
)
def test_names_of_levels(levels: list[Any], names: list[str]) -> None:
    assert [name for name, _ in named_cells({"x": tuple(levels)}, "product", ())] == [f"x={name}" for name in names]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_numbers_of_cells(lengths: list[int]) -> None:
    axes = {f"a{number}": tuple(range(length)) for number, length in enumerate(lengths)}
    counts = {combine: len(list(named_cells(axes, combine, ()))) for combine in ("product", "one_at_a_time")}
    assert counts == {"product": math.prod(lengths), "one_at_a_time": 1 + sum(length - 1 for length in lengths)}


def test_no_axes_make_one_cell_however_they_are_combined() -> None:
    assert [list(named_cells({}, combine, ())) for combine in ("product", "zip", "one_at_a_time")] == [[("", {})]] * 3


@pytest.mark.parametrize(
    ("axes", "combine", "exclude", "message"),
    [
        ({COUNT: ()}, "one_at_a_time", [], "axes.captions.count has no levels; list its values"),
        (
            {COUNT: (0, 1, 2), SCHEDULE: ("cosine",)},
            "zip",
            [],
            'combine = "zip" needs axes of equal length: captions.count has 3, train.schedule has 1',
        ),
        (
            {COUNT: (0, 1)},
            "product",
            [{"captions.cout": 0}],
            "exclude[0] names 'captions.cout', which is not an axis; did you",
        ),
        ({}, "product", [{COUNT: 0}], "exclude[0] names 'captions.count', which is not an axis; there are no [axes]"),
        (
            {COUNT: (0, 1)},
            "product",
            [{COUNT: 0}, {COUNT: 2}],
            "exclude[1] matches no combination of the axes; correct",
        ),
        ({COUNT: (0, 1)}, "product", [{}], "exclude[0] matches no combination of the axes"),
    ],
)
def test_axes_that_make_no_sense(axes: Any, combine: Any, exclude: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        check_axes(axes, combine, exclude)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"baseline": "a"}, "there are no arms: add [arms.NAME] tables, or [axes]"),
        (
            {"axes": {COUNT: [0]}, "exclude": [{COUNT: 0}], "baseline": "a"},
            "there are no arms: exclude removes all of them",
        ),
        (
            {"arms": {"clip": {}}, "baseline": "clop"},
            "baseline names 'clop', which is not an arm; did you mean 'clip'?",
        ),
        (
            {"arms": {"a": {}, "b": {"seed": 1}}, "baseline": "a", "labels": {"b": "a"}},
            "two arms are printed as 'a': give each its own label",
        ),
        (
            {
                "arms": {"a": {}},
                "baseline": "a",
                "references": [{"arm": "a", "metric": "x/acc1", "value": 0.1, "source": "T", "protocol": " "}],
            },
            "references[0].protocol: is empty: state where",
        ),
        ({"arms": {"a": {}}, "baseline": "a", "labels": {"b": "B"}}, "labels names 'b', which is not an arm; known: a"),
        ({"axes": {COUNT: [1, 1]}, "baseline": "a"}, "two arms are called 'captions.count=1': rename one"),
        ({"axes": {COUNT: ["1", 1]}, "baseline": "a"}, "two arms are called 'captions.count=1'"),
        (
            {
                "arms": {"a": {}},
                "baseline": "a",
                "references": [{"arm": "b", "metric": "m", "value": 1, "source": "s"}],
            },
            "references names 'b', which is not an arm; known: a; a system without an arm needs [published.b]",
        ),
        (
            {"arms": {"a": {}}, "baseline": "a", "published": {"b": {"label": "B", "reason": "r"}}},
            'published.b has no reference: add [[references]] with arm = "b"',
        ),
        (
            {"arms": {"a": {}}, "baseline": "a", "published": {"a": {"label": "B", "reason": "r"}}},
            "published.a is an arm: remove the table",
        ),
        (
            {
                "arms": {"a": {}},
                "baseline": "a",
                "published": {"b": {"label": "a", "reason": "r"}},
                "references": [{"arm": "b", "metric": "x/acc1", "value": 0.1, "source": "T"}],
            },
            "published.b is printed as 'a', as another row: change its label",
        ),
        (
            {"arms": {"a": {}}, "baseline": "a", "published": {"b": {"label": "B", "reason": " "}}},
            "published.b.reason: is empty: state why no arm trains this system",
        ),
        (
            {"arms": {"a": {}}, "baseline": "b", "published": {"b": {"label": "B", "reason": "r"}}},
            "baseline names 'b', which is not an arm",
        ),
        (
            {"arms": {"a": {}}, "baseline": "a", "claims": [{"text": "t", "arm": "a", "than": "b"}]},
            "claims ('t') names 'b', which is not an arm",
        ),
        ({"arms": {"a": {}}, "baseline": "a", "seeds": 0}, "seeds: give at least one seed"),
        ({"arms": {"a": {}}, "baseline": "a", "seeds": [1, 1]}, "seeds: give at least one seed; seeds must differ"),
        ({"arms": {"a": {}}, "baseline": "a", "seeds": [-1]}, "seeds: give at least one seed"),
        ({"arms": {"a": {}}, "baseline": "a", "seeds": [2**31]}, "seeds: give at least one seed"),
    ],
)
def test_refused(stated: dict[str, Any], message: str) -> None:
    assert refused(**stated).startswith(f"f: {message}")


def test_seeds() -> None:
    assert ablation({"a": {}}, seeds=3).seed_list == (0, 1, 2)
    assert ablation({"a": {}}, seeds=[7, 3]).seed_list == (7, 3)
