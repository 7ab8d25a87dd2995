"""The evaluation spec: what it takes, and what it says about what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.config.evaluation import Evaluation, set_name


def test_defaults_and_json() -> None:
    spec = Evaluation(sets=("shapes", "vtab/pets"), every="100 steps", recall_k=(5, 1), templates=("a {c}",))
    assert spec.recall_k == (1, 5)
    assert Evaluation.model_validate_json(spec.model_dump_json()) == spec
    assert Evaluation().science() == {}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sets": ("pets", "vtab/pets")}, 'two evaluation sets are called "pets"'),
        ({"sets": ("",)}, "an evaluation set has no name"),
        ({"recall_k": ()}, "must name at least one k"),
        ({"recall_k": (5, 5)}, "each only"),
        ({"recall_k": (0,)}, "greater than or equal to 1"),
        ({"templates": ("a photo",)}, 'template "a photo" has no {c}'),
        ({"templates": ()}, 'write "set"'),
        ({"templates": "imagenet8"}, "'set', 'imagenet7' or 'imagenet80'"),
        ({"every": 100}, 'write "100 steps"'),
        ({"precision": "fp16"}, "'float32', 'tf32' or 'bfloat16'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Evaluation(**fields)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("reference", "name"), [("shapes", "shapes"), ("vtab/pets", "pets"), ("/data/pets/", "pets"), ("./a/b", "b")]
)
def test_set_names(reference: str, name: str) -> None:
    assert set_name(reference) == name
