"""Protocol ids: equal where numbers may stand in one column, different where they may not."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation
from harness.evaluation import protocol as protocols
from harness.evaluation.conditions import CONVENTIONS
from harness.evaluation.layout import Layout
from harness.evaluation.protocol import protocol, protocol_id, templates
from harness.evaluation.sets import EvaluationSet

PATH = Path("somewhere")
CLASSIFICATION = EvaluationSet(
    Layout("things", PATH, "zeroshot_classification", (), ("fox", "owl"), ("a photo of a {c}.", "{c}")),
    keys=("a", "b"),
    images=(),
    labels=(0, 1),
    captions=(),
    digest="0" * 64,
)
RETRIEVAL = EvaluationSet(
    Layout("pictures", PATH, "zeroshot_retrieval", (), (), ()),
    keys=("a", "b"),
    images=(),
    labels=(),
    captions=(("one",), ("two", "three")),
    digest="1" * 64,
)


def identity(evaluation_set: EvaluationSet, transform: str = "224 px", **spec: Any) -> str:
    return protocol_id(protocol(evaluation_set, Evaluation(**spec), transform))


def changed(evaluation_set: EvaluationSet, **layout: Any) -> EvaluationSet:
    return dataclasses.replace(evaluation_set, layout=dataclasses.replace(evaluation_set.layout, **layout))


def test_golden_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that changes makes old and new numbers incomparable: raise VERSION on purpose, never by accident."""
    monkeypatch.setattr(protocols, "version", lambda _: "3.3.0")
    assert (identity(CLASSIFICATION), identity(RETRIEVAL)) == ("8169b68984f1", "1e4d9b361e37")


@pytest.mark.parametrize("evaluation_set", [CLASSIFICATION, RETRIEVAL])
def test_names_places_and_schedules_do_not_change_a_number(evaluation_set: EvaluationSet) -> None:
    same = changed(evaluation_set, name="other", path=Path("elsewhere"), shards=(Path("0.tar"),))
    assert identity(same, sets=("other",), every="5 steps") == identity(evaluation_set)


@pytest.mark.parametrize(
    "spec", [{"precision": "bfloat16"}, {"text_normalisation": "lowercase"}, {"transform": "256 px"}]
)
def test_what_changes_every_number(spec: dict[str, Any]) -> None:
    for evaluation_set in (CLASSIFICATION, RETRIEVAL):
        assert identity(evaluation_set, **spec) != identity(evaluation_set)


def test_what_changes_classification_alone() -> None:
    ids = {
        identity(CLASSIFICATION),
        identity(dataclasses.replace(CLASSIFICATION, digest="2" * 64)),
        identity(changed(CLASSIFICATION, classnames=("fox", "snow owl"))),
        identity(changed(CLASSIFICATION, templates=("{c}", "a photo of a {c}."))),
        identity(CLASSIFICATION, templates="imagenet7"),
        identity(CLASSIFICATION, templates="imagenet80"),
        identity(CLASSIFICATION, templates=("the {c}",)),
    }
    assert len(ids) == 7
    assert identity(CLASSIFICATION, prefix="a photo of", recall_k=(3,)) == identity(CLASSIFICATION)
    assert identity(RETRIEVAL, templates="imagenet7") == identity(RETRIEVAL)


def test_what_changes_retrieval_alone() -> None:
    other = dataclasses.replace(RETRIEVAL, digest="2" * 64)
    ids = {identity(RETRIEVAL), identity(RETRIEVAL, prefix="a photo of"), identity(other)}
    assert len(ids) == 3
    assert identity(RETRIEVAL, recall_k=(1,)) == identity(RETRIEVAL)  # recall@1 is recall@1


def test_an_own_list_equal_to_the_sets_file_is_the_same_protocol() -> None:
    assert identity(CLASSIFICATION, templates=("a photo of a {c}.", "{c}")) == identity(CLASSIFICATION)


def test_named_templates_are_those_of_the_field() -> None:
    seven, eighty = (templates(CLASSIFICATION, Evaluation(templates=name)) for name in ("imagenet7", "imagenet80"))
    assert (len(seven), len(eighty)) == (7, 80)
    assert seven[0] == "itap of a {c}."
    assert all(template.count("{c}") == 1 for template in (*seven, *eighty))


def test_no_templates_at_all() -> None:
    with pytest.raises(DataError, match="there are no prompt templates; write one per line"):
        protocol(changed(CLASSIFICATION, templates=()), Evaluation(), "224 px")
    assert identity(changed(CLASSIFICATION, templates=()), templates=("{c}",))


def test_the_conventions_are_those_of_the_installed_clip_benchmark() -> None:
    """The tests compare with this version, so it is the one that may be named."""
    assert ".".join(version("clip-benchmark").split(".")[:2]) == CONVENTIONS.removeprefix("clip-benchmark ")
