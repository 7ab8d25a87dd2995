"""Sums of losses as specs: one id for every way of writing one, and overrides that go through validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import SpecError
from harness.config.experiment import Experiment
from harness.config.load import load
from harness.config.overrides import expand, laid_over

SPELLED = {"terms": [{"kind": "infonce"}, {"kind": "simclr", "weight": 1.0}]}


def science(loss: Any, *changes: dict[str, Any]) -> Any:
    one = Experiment.model_validate({"loss": {"kind": "infonce"}})
    return laid_over(one, {"loss": loss}, *map(expand, changes)).science().get("loss")


def test_a_sum_of_one_term_has_the_id_of_its_loss() -> None:
    plain = {"kind": "sigmoid", "logit_bias": -8}
    assert science({"terms": [plain]}) == science(plain)
    assert science({"terms": [plain, {"kind": "simclr", "weight": 0}]}) == science(plain)
    assert science({"terms": [{"kind": "infonce"}]}) is None, "the default loss is no part of an id"
    assert science({"terms": [{"weight": 1, "loss": plain}]}) == science(plain)


def test_a_system_is_its_terms() -> None:
    assert science({"kind": "slip"}) == science(SPELLED)
    assert science({"kind": "slip"}, {"loss.terms.1.weight": 0.5}) != science(SPELLED)
    assert science({"kind": "slip"}, {"loss.terms.1.head": "none", "loss.terms.1.hidden": 9}) == science(
        {"terms": [{"kind": "infonce"}, {"kind": "simclr", "head": "none"}]}
    )


def test_a_stored_spec_is_read_back() -> None:
    one = Experiment.model_validate({"loss": {"kind": "slip"}})
    again = Experiment.model_validate(one.model_dump(mode="json"))
    assert again == one
    assert again.loss.label == "slip"
    assert laid_over(one, expand({"loss.terms.1.weight": 2})).loss.label == "infonce + simclr"


def test_terms_replace_another_loss(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('[loss]\nkind = "multi_positive_sigmoid"\nlogit_bias = -10\n')
    file = tmp_path / "mine.toml"
    file.write_text('extends = "base.toml"\n[loss]\nterms = [{ kind = "infonce" }, { kind = "simclr" }]\n')
    changed = load(file, ["loss.terms.1.weight=0.25"])
    assert laid_over(changed.experiment, changed.base).science()["loss"] == science(
        {"kind": "slip"}, {"loss.terms.1.weight": 0.25}
    )


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("loss.terms.1.weight=-1", "--set: loss.terms[1].weight: should be greater than or equal to 0"),
        ("loss.terms.7.weight=1", "--set: loss.terms[7]: there is no such term: they are numbered from 0"),
        ("loss.terms.1.wait=1", "--set: loss.terms[1].wait: unknown key"),
    ],
)
def test_bad_changes_of_terms_are_told(tmp_path: Path, assignment: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[loss]\nkind = "slip"\n')
    with pytest.raises(SpecError) as caught:
        load(file, [assignment])
    assert said in str(caught.value)
