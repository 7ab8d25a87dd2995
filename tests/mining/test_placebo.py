"""The placebo of a mining: as many positives for each image, drawn at random, the same wherever it is drawn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.base.errors import SpecError
from harness.config.mining import PlaceboMining, ThresholdMining
from harness.mining import GROUND_TRUTH, Calibration, Mined, MiningRule, build_rule, mine
from harness.mining.placebo import redrawn
from tests.head.made import MINING, ablation, plan_of

from .reference import Batch, features
from .test_positives import batches, thresholds

SIGMOID = {"kind": "multi_positive_sigmoid"}


def foreign(mined: Mined) -> Counter[int]:
    return Counter(mined.rows[mined.clause < GROUND_TRUTH].tolist())


@given(thresholds(), batches())
@settings(max_examples=100, deadline=None)
def test_as_many_positives_of_other_images_and_the_same_own_ones(limits: Any, batch: Batch) -> None:
    image, text, owner = batch
    mined = mine(limits, image, text, owner)
    drawn = redrawn(mined, image, owner)
    assert foreign(drawn) == foreign(mined)
    mark = mined.clause >= GROUND_TRUTH
    kept = drawn.clause >= GROUND_TRUTH
    assert torch.equal(drawn.cols[kept], mined.cols[mark])
    assert (owner[drawn.cols[~kept]] != drawn.rows[~kept]).all()
    codes = drawn.rows * len(text) + drawn.cols
    assert (codes.diff() > 0).all()  # sorted, and no pair twice


@given(thresholds(), batches(), st.data())
@settings(max_examples=50, deadline=None)
def test_ranks_draw_what_one_process_draws(limits: Any, batch: Batch, data: st.DataObject) -> None:
    image, text, owner = batch
    whole = redrawn(mine(limits, image, text, owner), image, owner)
    cut = data.draw(st.integers(0, len(image)))
    parts = [range(cut), range(cut, len(image))]
    drawn = [redrawn(mine(limits, image, text, owner, images=part), image, owner) for part in parts if len(part)]
    assert torch.equal(torch.cat([one.cols for one in drawn]), whole.cols)
    assert torch.equal(torch.cat([one.rows for one in drawn]), whole.rows)


def test_every_other_caption_is_drawn_equally_often() -> None:
    _, text, owner = features(0, [2] * 6, 4, 2)
    pair = Mined(torch.tensor([3]), torch.tensor([0]), torch.tensor([1], dtype=torch.uint8), range(6), 12)
    drawn: Counter[int] = Counter()
    for seed in range(3000):
        image = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))  # another batch
        drawn.update(redrawn(pair, image, owner).cols.tolist())
    assert set(drawn) == {caption for caption in range(len(text)) if owner[caption] != 3}
    assert min(drawn.values()) > 230  # 300 on average, standard deviation 16
    assert max(drawn.values()) < 370


def test_the_rule_draws_by_the_thresholds_of_what_it_matches() -> None:
    image, text, owner = features(1, [2] * 40, 8, 4)
    spec = ThresholdMining.model_validate({"kind": "threshold", "image_text": {"quantile": 0.9}})
    rules = [build_rule(one, lambda: Calibration(image, text, owner)) for one in (spec, PlaceboMining(of=spec))]
    assert isinstance(rules[0], MiningRule)
    assert isinstance(rules[1], MiningRule)
    mined, drawn = (rule.mine(image, text, owner, range(40)) for rule in rules if isinstance(rule, MiningRule))
    assert foreign(drawn) == foreign(mined)
    assert foreign(mined).total() > 100
    assert not torch.equal(drawn.cols, mined.cols)
    assert rules[0].logs() == rules[1].logs()


def arms(**placebo: Any) -> dict[str, Any]:
    mined = {"loss": SIGMOID, "mining": MINING}
    return {
        "raw": {"loss": SIGMOID},
        "mined": mined,
        "placebo": {"loss": SIGMOID, "mining": {"kind": "placebo", **placebo}},
    }


def test_a_placebo_names_an_arm_and_has_its_mining() -> None:
    plan = plan_of(ablation(arms(of="mined")))
    assert plan.experiments["placebo"].mining.control_of == plan.experiments["mined"].mining
    stricter = arms(of="mined")
    stricter["mined"]["mining"] = {**MINING, "image_text": 0.4}
    assert plan_of(ablation(stricter)).ids("placebo") != plan.ids("placebo")
    assert plan_of(ablation(stricter)).ids("raw") == plan.ids("raw")


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("minned", "names 'minned', which is not an arm; did you mean 'mined'?"),
        ("raw", "arms.placebo.mining is a placebo of 'raw', whose mining is of kind \"none\""),
        ("placebo", 'whose mining is of kind "placebo"'),
    ],
)
def test_a_placebo_of_nothing_is_refused(of: str, said: str) -> None:
    with pytest.raises(ValidationError, match="placebo") as caught:
        ablation(arms(of=of))
    assert said in str(caught.value)


def test_an_arms_name_means_nothing_outside_of_an_ablation() -> None:
    with pytest.raises(SpecError, match="'mined' names an arm, and there are none"):
        build_rule(PlaceboMining(of="mined"), lambda: pytest.fail("it reads no features"))
