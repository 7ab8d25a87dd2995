"""Which fields tell two arms apart, what a claim can be put down to, and the arm that would isolate it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.base.errors import SpecError
from harness.config.ablation import Ablation
from harness.config.explain import explain
from harness.planning.isolation import confounded, differing, is_under, isolation
from harness.planning.plan import Plan
from tests.head.made import BASE, MINING, ablation, experiment, plan_of

SIGMOID = {"kind": "multi_positive_sigmoid"}
QUICKSTART: dict[str, Any] = {
    "clip": {},
    "mined": {"loss": SIGMOID, "mining": MINING},
    "all": {"loss": SIGMOID, "captions": {"count": 5}},
}


@pytest.mark.parametrize(
    ("ours", "theirs", "fields"),
    [
        ({}, {}, ()),
        ({"loss": SIGMOID}, {}, ("loss.kind",)),  # its bias, its scale and its clamp follow from the kind
        ({"loss": {**SIGMOID, "logit_scale": 20.0}}, {}, ("loss.kind", "loss.logit_scale")),
        ({"loss": {**SIGMOID, "logit_bias": -3.0}}, {"loss": SIGMOID}, ("loss.logit_bias",)),
        ({"loss": SIGMOID, "mining": MINING}, {"loss": SIGMOID}, ("mining.kind",)),  # and a teacher
        ({"captions": {"source": "captioner", "count": 5}}, {"captions": {}}, ("captions.count",)),
        ({"captions": {"source": "captioner", "count": 5, "mixing": "sample"}}, {}, ("captions.count",)),
        (
            {"captions": {"source": "captioner", "count": 5, "mixing": "sample"}},
            {"captions": {"source": "captioner", "count": 5}},
            ("captions.mixing",),
        ),
        ({"seed": 3, "evaluation": {"sets": ["digits"]}}, {}, ()),
        ({"train": {**BASE["train"], "optimiser": {"lr": 1.0}}}, {}, ("train.optimiser.lr",)),
    ],
)
def test_fields_that_follow_by_necessity_do_not_count(
    ours: dict[str, Any], theirs: dict[str, Any], fields: tuple[str, ...]
) -> None:
    one, other = experiment(**ours), experiment(**theirs)
    assert set(differing(one, other)) == set(fields)
    assert set(differing(one, other)) == set(differing(other, one))


def claim(arm: str, than: str, **more: Any) -> dict[str, Any]:
    return {"text": f"{arm} beats {than}", "arm": arm, "than": than, **more}


def planned(*claims: dict[str, Any], arms: dict[str, Any] = QUICKSTART, **more: Any) -> Plan:
    return plan_of(ablation(arms, claims=claims, **more))


@pytest.mark.parametrize(
    ("stated", "said", "about"),
    [
        (claim("mined", "clip"), "not attributable: mining.kind and loss.kind differ", None),
        (claim("mined", "clip", factor="mining"), "not attributable to mining: loss.kind differs too", "mining"),
        (claim("mined", "all", factor="mining"), "not attributable to mining: captions.count differs too", "mining"),
        (claim("mined", "clip", compares="systems"), "", None),
    ],
)
def test_a_claim_knows_what_its_arms_differ_in(stated: dict[str, Any], said: str, about: str | None) -> None:
    plan = planned(stated)
    found = isolation(plan.ablation.claims[0], plan.experiments)
    assert (found.why_not, found.factor) == (said, about)
    assert bool(confounded(plan.ablation, plan.experiments)) == bool(said)


def test_a_claim_without_a_factor_is_about_the_one_part_that_differs() -> None:
    arms = {"one": {"loss": SIGMOID}, "two": {"loss": SIGMOID, "mining": MINING}, "three": {"captions": {"count": 5}}}
    plan = planned(claim("two", "one"), arms={**arms, "four": {"captions": {"count": 5, "raw": False}}})
    found = isolation(plan.ablation.claims[0], plan.experiments)
    assert (found.factor, found.besides) == ("mining.kind", ())


def test_what_is_cached_on_a_spec_is_no_field() -> None:
    """Checking a factor reads tables of experiments, which requests are made of afterwards."""
    one = experiment()
    assert one.table["seed"] == 0
    assert set(dict(one)) == set(type(one).model_fields)


def test_a_factor_is_a_whole_name() -> None:
    """`train.optimiser` is not under `train.opt`, nor `captions.counts` under `captions.count`."""
    assert is_under("captions.count", "captions")
    assert is_under("captions.count", "captions.count")
    assert not is_under("captions.count", "captions.c")
    assert not is_under("captions", "captions.count")


def test_batch_size_and_duration_are_no_one_factor() -> None:
    arms = {"a": {}, "b": {"train": {"global_batch_size": 64, "duration": "600 steps"}}}
    plan = planned(claim("b", "a"), arms=arms)
    assert isolation(plan.ablation.claims[0], plan.experiments).why_not.startswith("not attributable: train.")


def test_the_proposed_arm_isolates_the_claim() -> None:
    stated = claim("mined", "clip", factor="mining")
    (warning,) = (lambda plan: confounded(plan.ablation, plan.experiments))(planned(stated))
    toml = "\n".join(line[4:] for line in warning.splitlines() if line.startswith("    "))
    pasted = tomllib.loads(toml)
    change = re.search(r'# and in the claim: (\w+) = "(\w+)", factor = "mining"', toml)
    assert change is not None
    plan = planned({**stated, change[1]: change[2]}, arms={**QUICKSTART, **pasted["arms"]})
    assert confounded(plan.ablation, plan.experiments) == []
    assert isolation(plan.ablation.claims[0], plan.experiments).fields == ("mining.kind",)


def test_a_matched_arm_that_is_there_is_named() -> None:
    plan = planned(claim("mined", "clip", factor="mining"), arms={**QUICKSTART, "loss only": {"loss": SIGMOID}})
    (warning,) = confounded(plan.ablation, plan.experiments)
    assert 'to isolate mining: than = "loss only", factor = "mining"' in warning
    assert "[arms." not in warning


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (
            claim("mined", "clip", factor="minning"),
            "claims[0].factor: there is no field 'minning'; did you mean 'mining'?",
        ),
        (
            claim("mined", "clip", factor="captions"),
            "'captions' is the same in 'mined' and 'clip'; they differ in mining",
        ),
        (claim("mined", "clip", margin="0.3"), "claims[0].margin: '0.3' has the wrong unit; shapes/acc1 is a share"),
        (claim("mined", "clip", metric="train/loss", margin="1 point"), "train/loss is not a share"),
    ],
)
def test_a_claim_that_cannot_be_about_what_it_says_is_refused(stated: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        planned(stated)


def test_the_ablations_margin_has_the_unit_of_its_primary_metric() -> None:
    with pytest.raises(SpecError, match=r"made.toml: margin: '2' has the wrong unit"):
        planned(margin="2")


@pytest.mark.parametrize("margin", ["0 points", "-1 points", "0.3 %", "points", "nan", "0.3 points or so"])
def test_a_margin_is_a_positive_number_of_points_or_alone(margin: str) -> None:
    table = {"question": "?", "experiment": experiment(), "primary": "s/acc1", "arms": {"a": {}}, "baseline": "a"}
    with pytest.raises(ValidationError) as caught:
        Ablation.model_validate({**table, "margin": margin})
    assert f"f: margin: margin {margin!r} is not a size" in str(explain(caught.value, Ablation, where="f"))


def test_a_claim_about_systems_has_no_factor() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        planned(claim("mined", "clip", compares="systems", factor="mining"))


def test_a_margin_of_the_ablation_is_for_its_primary_metric() -> None:
    more = [claim("mined", "clip", metric="shapes/acc5"), claim("mined", "clip", margin="2 points")]
    found = planned(claim("mined", "clip"), *more, margin="1 point").ablation
    assert [found.margin_of(one) for one in found.claims] == ["1 point", None, "2 points"]


def test_check_and_plan_tell_it_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import output
    from harness.runs.store import Store

    plan = planned(claim("mined", "clip", factor="mining"))
    output.plan(plan, Store(tmp_path))
    assert "not attributable to mining: loss.kind differs too" in capsys.readouterr().out
    (found,) = output.plan_json(plan, Store(tmp_path))["claims"]
    assert (found["factor"], found["differs_besides"]) == ("mining", ["loss.kind"])
