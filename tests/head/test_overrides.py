"""Tables laid over one another, dotted paths, assignments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.base.errors import SpecError
from harness.config.overrides import Whole, expand, laid_over, merge, parse_assignment
from tests.head.made import MINING, experiment

flat_tables = st.dictionaries(st.sampled_from(["a.x", "a.y", "a.z.w", "b.x", "c", "d.e.f.g"]), st.integers(0, 3))


def test_dotted_and_nested_keys_of_one_table_meet() -> None:
    assert expand({"a.b": 1, "a": {"c": 2}, "a.d.e": 3}) == {"a": {"b": 1, "c": 2, "d": {"e": 3}}}


@given(flat_tables, flat_tables, flat_tables)
def test_merging_nested_tables_is_merging_their_dotted_paths(
    low: dict[str, int], middle: dict[str, int], high: dict[str, int]
) -> None:
    together = expand({**low, **middle, **high})
    assert merge(merge(expand(low), expand(middle)), expand(high)) == together
    assert merge(expand(low), merge(expand(middle), expand(high))) == together


def test_merging_changes_neither_side() -> None:
    base, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, changes) == {"a": {"b": 1, "c": 2}}
    assert (base, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_another_kind_replaces_the_table() -> None:
    base = {"loss": {"kind": "infonce", "normaliser": "slotwise"}}
    assert merge(base, {"loss": {"kind": "sigmoid"}}) == {"loss": {"kind": "sigmoid"}}
    assert merge(base, {"loss": {"kind": "infonce"}}) == base
    assert merge(base, {"loss": {"normaliser": "pooled"}})["loss"]["kind"] == "infonce"


def test_the_content_of_a_file_replaces_the_table() -> None:
    assert merge({"config": {"a": 1, "b": 2}}, {"config": Whole(a=3)}) == {"config": {"a": 3}}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("captions.count=5", "captions.count", 5),
        ("train.duration=300 steps", "train.duration", "300 steps"),
        ("train.duration='300 steps'", "train.duration", "300 steps"),
        (" loss.kind = sigmoid ", "loss.kind", "sigmoid"),
        ("train.optimiser.lr=1e-3", "train.optimiser.lr", 0.001),
        ("captions.raw=false", "captions.raw", False),
        ("evaluation.sets=['a', 'b']", "evaluation.sets", ["a", "b"]),
        ("mining={kind='none'}", "mining", {"kind": "none"}),
        ("evaluation.prefix=a=b", "evaluation.prefix", "a=b"),
    ],
)
def test_assignments(text: str, path: str, value: object) -> None:
    assert parse_assignment(text) == (path, value)


@pytest.mark.parametrize("text", ["captions.count", "", "=5", "  = 5"])
def test_an_assignment_needs_a_path_and_an_equals_sign(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--set: .* assigns no value; write --set path.to.field=value$"):
        parse_assignment(text)


def test_sections_that_do_not_change_are_the_same_objects() -> None:
    base = experiment()
    changed = laid_over(base, {"captions": {"count": 3}}, {"captions": {"mixing": "sample"}})
    assert (changed.captions.count, changed.captions.mixing, changed.captions.source) == (3, "sample", "captioner")
    assert all(dict(changed)[name] is dict(base)[name] for name in dict(base) if name not in ("captions", "seed"))


def test_layers_are_laid_over_one_after_the_other() -> None:
    """So a kind that a later layer states does away with what an earlier one said of another kind."""
    changed = laid_over(experiment(), {"loss": {"normaliser": "slotwise"}}, {"loss": {"kind": "sigmoid"}})
    assert changed.loss.kind == "sigmoid"


def test_the_result_is_validated() -> None:
    with pytest.raises(ValidationError):
        laid_over(experiment(), {"train": {"global_batch_size": 1}})
    with pytest.raises(ValidationError):
        laid_over(experiment(), {"traim": {}})
    with pytest.raises(ValidationError):
        laid_over(experiment(teacher=None), {"mining": MINING})
