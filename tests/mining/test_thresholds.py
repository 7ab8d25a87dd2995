from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.base.errors import DataError, SpecError
from harness.config.mining import Quantile, ThresholdMining
from harness.mining import calibration_images, mine, resolve_thresholds
from harness.mining.texts import Reduction

from .reference import Batch, Floats, features, similarities

BIN = 2e-6
ALL = {"image_text": 0.98, "image_image": 0.95, "text_text": 0.97, "image_text_guard": 0.9, "drop_below": 0.2}


def quantiles(**levels: float) -> dict[str, Quantile]:
    return {name: Quantile(quantile=level) for name, level in levels.items()}


def foreign(batch: Batch, reduction: Reduction = "mean") -> dict[str, Floats]:
    """The scores of every pair that is not the ground truth, by threshold."""
    sit, _, stt = similarities(*batch, reduction)
    other = batch[2].numpy()[None, :] != np.arange(len(batch[0]))[:, None]
    image = batch[0].double().numpy()
    pairs = (image @ image.T)[~np.eye(len(image), dtype=bool)]
    return {
        "image_text": sit[other],
        "image_text_guard": sit[other],
        "drop_below": sit[other],
        "image_image": pairs,
        "text_text": stt[other],
    }


@pytest.mark.parametrize("reduction", ["mean", "max", "block_mean"])
def test_quantiles_are_those_of_the_pairs_that_mining_may_change(reduction: Reduction) -> None:
    batch = features(0, [3] * 60, 24, 5)
    spec = ThresholdMining(keep_ground_truth=False, text_text_reduction=reduction, **quantiles(**ALL))
    resolved = resolve_thresholds(spec, *batch)
    for name, scores in foreign(batch, reduction).items():
        cosine = getattr(resolved, name)
        assert cosine == pytest.approx(np.quantile(scores, ALL[name], method="inverted_cdf"), abs=BIN)
        assert resolved.passing[name] == (scores > cosine).mean() <= 1 - ALL[name] + 1e-12
    assert resolved.text_text_reduction == reduction
    assert resolved.keep_ground_truth is False


def test_absolute_thresholds_stay_and_report_their_share() -> None:
    batch = features(1, [1] * 80, 16, 4)
    spec = ThresholdMining(image_text=0.7, image_image=Quantile(quantile=0.9), text_text=0.8, image_text_guard=0.5)
    resolved = resolve_thresholds(spec, *batch)
    assert (resolved.image_text, resolved.text_text, resolved.image_text_guard) == (0.7, 0.8, 0.5)
    for name, scores in foreign(batch).items():
        if name != "drop_below":
            assert resolved.passing[name] == pytest.approx((scores > getattr(resolved, name)).mean(), abs=1e-9)
    assert resolved.drop_below is None
    assert "drop_below" not in resolved.passing


def test_a_quantile_does_not_move_with_the_number_of_images_that_share_a_batch() -> None:
    """Own pairs are 1 / N of a batch: were they counted, small batches would set their threshold among them."""
    batch = features(2, [1] * 30, 16, 30)
    spec = ThresholdMining(image_text=Quantile(quantile=0.99))
    one = resolve_thresholds(spec, *batch).image_text
    assert one is not None
    own = (batch[0][batch[2]] * batch[1]).sum(1)
    assert (own > one).float().mean() > 0.9
    mined = mine(resolve_thresholds(spec, *batch), *batch).logs()["mined_per_image"]
    assert mined <= 0.01 * 29


def test_a_score_shared_by_many_pairs_is_not_passed_by_any_of_them() -> None:
    """30 % of the captions are the same: the .99 quantile of Stt is theirs, 1, and nothing lies above it."""
    image, text, owner = features(3, [1] * 100, 24, 100)
    text[torch.arange(0, 100, 3)] = text[0].clone()
    for dtype in (torch.float32, torch.float16):
        spec = ThresholdMining(text_text=Quantile(quantile=0.99))
        resolved = resolve_thresholds(spec, image.to(dtype), text.to(dtype), owner)
        assert resolved.text_text == pytest.approx(1, abs=1e-3)
        assert resolved.passing["text_text"] == 0
        assert mine(resolved, image.to(dtype), text.to(dtype), owner).logs()["mined_per_image"] == 0


def test_a_guard_that_comes_out_above_p1_is_refused() -> None:
    batch = features(4, [1] * 50, 16, 4)
    spec = ThresholdMining(image_text=0.2, text_text=0.9, image_text_guard=Quantile(quantile=0.99))
    with pytest.raises(SpecError, match=r"p1'.*image_text \(p1\) 0\.2000.*lower image_text_guard"):
        resolve_thresholds(spec, *batch)
    guard = Quantile(quantile=0.99)
    resolved = resolve_thresholds(ThresholdMining(text_text=0.9, image_text_guard=guard), *batch).image_text_guard
    assert resolved is not None
    with pytest.raises(SpecError, match="could never add a pair"):  # equal: there is nothing between them
        resolve_thresholds(ThresholdMining(image_text=resolved, text_text=0.9, image_text_guard=guard), *batch)
    unused = ThresholdMining(image_text=0.2, image_text_guard=Quantile(quantile=0.99))
    assert resolve_thresholds(unused, *batch).image_text_guard is None


def test_features_that_cannot_be_scored_are_refused() -> None:
    spec = ThresholdMining(image_text=Quantile(quantile=0.9))
    image, text, owner = features(5, [1] * 4, 8, 2)
    with pytest.raises(DataError, match="at least two images"):
        resolve_thresholds(spec, image[:1], text[owner == 0], owner[owner == 0])
    text[2, 3] = torch.nan
    with pytest.raises(DataError, match="1 of 4 text features of the teacher are not finite"):
        resolve_thresholds(spec, image, text, owner)


def test_a_run_can_say_which_cosines_its_quantiles_stand_for() -> None:
    spec = ThresholdMining(image_text=Quantile(quantile=0.9), image_image=0.5)
    resolved = resolve_thresholds(spec, *features(4, [1] * 50, 16, 4))
    logs = resolved.logs()
    assert set(logs) == {"image_text_threshold", "image_image_threshold", "image_text_passing", "image_image_passing"}
    assert logs["image_text_threshold"] == resolved.image_text
    assert logs["image_text_passing"] == pytest.approx(0.1, abs=0.002)


def test_calibration_images_are_drawn_once_for_all_runs() -> None:
    drawn = calibration_images(10_000, 500)
    assert len(np.unique(drawn)) == 500
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, calibration_images(10_000, 500))
    np.testing.assert_array_equal(calibration_images(3), [0, 1, 2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "every clause of the mining is off"),
        ({"image_text_guard": 0.2}, "every clause of the mining is off"),
        ({"image_text": 1.0}, "less than 1"),
        ({"image_text": -1}, "greater than -1"),
        ({"image_text": float("nan")}, "finite number"),
        ({"image_text": {"quantile": 1.0}}, "less than 1"),
        ({"image_text": {"share": 0.5}}, "Field required"),
        ({"image_text": 0.2, "text_text": 0.9, "image_text_guard": 0.2}, "p1' has to be below p1"),
        (quantiles(image_text=0.9, text_text=0.9, image_text_guard=0.95), "p1' has to be below p1"),
        ({"image_text": 0.2, "drop_below": 0.1}, "keep_ground_truth keeps them"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdMining(**fields)


def test_what_a_clause_that_is_off_would_have_used_is_no_science() -> None:
    one = ThresholdMining(image_text=0.2, image_text_guard=0.3, text_text_reduction="max")
    assert one.science() == ThresholdMining(image_text=0.2).science() == {"kind": "threshold", "image_text": 0.2}
    assert ThresholdMining(image_text=0.2, text_text=0.5).science() != ThresholdMining(image_text=0.2).science()
