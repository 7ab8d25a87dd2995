from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.mining import GROUND_TRUTH, Mined, Thresholds, mine
from harness.mining.texts import CaptionTable, Reduction, TextScores

from .reference import Batch, features, literal, similarities

EQ1 = Thresholds(image_text=0.75, image_image=0.8, text_text=0.7, image_text_guard=0.5)
REDUCTIONS: list[Reduction] = ["mean", "max", "block_mean"]


def dense(mined: Mined, batch: Batch) -> npt.NDArray[np.uint8]:
    """The clauses of every pair [N, M]; 0 for a negative."""
    bits = np.zeros((len(batch[0]), len(batch[1])), dtype=np.uint8)
    assert (mined.clause > 0).all()
    bits[mined.rows.numpy(), mined.cols.numpy()] = mined.clause.numpy()
    assert (bits > 0).sum() == len(mined.rows), "a pair is listed twice"
    return bits


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(sum))
    width, clusters = draw(st.sampled_from([1, 2, 8, 33])), draw(st.integers(1, 4))
    return features(draw(st.integers(0, 10**6)), counts, width, clusters)


@st.composite
def thresholds(draw: st.DrawFn) -> Thresholds:
    level, keep = st.none() | st.floats(-0.99, 0.99), draw(st.booleans())
    return Thresholds(
        image_text=draw(level),
        image_image=draw(level),
        text_text=draw(level),
        image_text_guard=draw(level),
        text_text_reduction=draw(st.sampled_from(REDUCTIONS)),
        keep_ground_truth=keep,
        drop_below=None if keep else draw(level),
    )


@given(thresholds(), batches(), st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_equals_eq_1_with_every_option_in_any_tile(limits: Thresholds, batch: Batch, tile: int) -> None:
    mined = mine(limits, *batch, tile=tile)
    np.testing.assert_array_equal(dense(mined, batch), literal(limits, *batch))
    codes = mined.rows * len(batch[1]) + mined.cols
    assert torch.equal(codes, codes.sort().values)


@given(thresholds(), batches(), st.data())
@settings(max_examples=100, deadline=None)
def test_images_can_be_mined_in_shares(limits: Thresholds, batch: Batch, data: st.DataObject) -> None:
    images = len(batch[0])
    cut = data.draw(st.integers(0, images))
    whole = mine(limits, *batch)
    parts = [mine(limits, *batch, images=part, tile=7) for part in (range(cut), range(cut, images))]
    for name in ("rows", "cols", "clause"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert sum(part.captions for part in parts) == whole.captions
    assert all((part.local_rows < len(part.images)).all() for part in parts)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decisions_near_a_threshold_are_those_of_exact_arithmetic(reduction: Reduction, dtype: torch.dtype) -> None:
    """Every threshold lies 1e-11 beside a score of the batch, far below float32 rounding."""
    image, text, owner = features(5, [3] * 24, 48, 5)
    batch = (image.to(dtype), text.to(dtype), owner)
    scores = similarities(*batch, reduction)
    for place in range(0, 24 * 72, 211):
        gap = 1e-11 if place % 2 else -1e-11
        one, two, three = (score.flat[place] + gap for score in scores)
        for limits in (
            Thresholds(image_text=one, keep_ground_truth=False),
            Thresholds(image_image=two, keep_ground_truth=False),
            Thresholds(text_text=three, image_text_guard=one, text_text_reduction=reduction),
            Thresholds(image_image=0.9, keep_ground_truth=False, drop_below=one),
        ):
            for tile in (100, 2**22):
                np.testing.assert_array_equal(dense(mine(limits, *batch, tile=tile), batch), literal(limits, *batch))


def test_half_precision_products_would_decide_otherwise() -> None:
    """Why scores are accumulated in float32: products in the features' own format move pairs over the threshold."""
    image, text, owner = features(5, [3] * 24, 48, 5)
    batch = (image.bfloat16(), text.bfloat16(), owner)
    rounded = (batch[0] @ batch[1].T).double().numpy()
    flipped = 0
    for limit in np.arange(0.5, 0.8, 2**-8) - 1e-4:
        ours = dense(mine(Thresholds(image_text=float(limit), keep_ground_truth=False), *batch), batch) > 0
        np.testing.assert_array_equal(ours, similarities(*batch, "mean")[0] > limit)
        flipped += ((rounded > limit) != ours).sum()
    assert flipped > 10


def test_a_score_at_its_threshold_is_not_above_it() -> None:
    half = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]])
    owner = torch.tensor([0, 1])
    for limits in (
        Thresholds(image_text=0.5),
        Thresholds(image_image=0.5),
        Thresholds(text_text=0.5, image_text_guard=0.4),
        Thresholds(text_text=0.4, image_text_guard=0.5),
    ):
        assert mine(limits, half, half, owner).cols.tolist() == [0, 1]
        lower = {name: np.nextafter(0.5, 0) for name in ("image_text", "image_image", "text_text", "image_text_guard")}
        on = {name: value for name, value in lower.items() if getattr(limits, name) == 0.5}
        assert mine(replace(limits, **on), half, half, owner).cols.tolist() == [0, 1, 0, 1]


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_permuting_images_and_captions_permutes_the_positives(batch: Batch, random: Random) -> None:
    image, text, owner = batch
    rows, cols = list(range(len(image))), list(range(len(text)))
    random.shuffle(rows)
    random.shuffle(cols)
    place = torch.empty(len(rows), dtype=torch.int64)
    place[rows] = torch.arange(len(rows))
    moved = (image[rows], text[cols], place[owner[cols]])
    np.testing.assert_array_equal(dense(mine(EQ1, *moved), moved), dense(mine(EQ1, *batch), batch)[rows][:, cols])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(batch=batches())
@settings(max_examples=50, deadline=None)
def test_caption_scores_need_no_matrix_of_all_captions(reduction: Reduction, batch: Batch) -> None:
    image, text, owner = batch
    scores = TextScores(text, owner, CaptionTable.of(owner, len(image)), reduction)
    expected = similarities(*batch, reduction)[2]
    having = np.isfinite(expected).all(axis=1)
    every = slice(0, len(image)), slice(0, len(text))
    np.testing.assert_allclose(scores.dense(*every).numpy()[having], expected[having], atol=scores.slack)
    assert not (scores.dense(*every).numpy()[~having] > -1).any()


def test_the_mean_caption_clause_of_the_paper_is_dead() -> None:
    """k = 5 captions that agree at .8 average .84 with one another, so p3 = .99 finds not even equal images."""
    captions = torch.cat([torch.full((5, 1), 0.8**0.5), torch.eye(5) * 0.2**0.5], dim=1)
    text, owner = captions.repeat(2, 1), torch.arange(2).repeat_interleave(5)
    image = torch.nn.functional.normalize(captions.mean(0, keepdim=True), dim=1).repeat(2, 1)
    table = CaptionTable.of(owner, 2)
    np.testing.assert_allclose(TextScores(text, owner, table, "mean").dense(slice(2), slice(10)), 0.84, atol=1e-6)
    limits = Thresholds(text_text=0.99, image_text_guard=0.24)
    assert mine(limits, image, text, owner).logs()["text_text_hits_per_image"] == 0
    alive = replace(limits, text_text_reduction="max")
    assert mine(alive, image, text, owner).logs()["text_text_hits_per_image"] == 5


def test_images_may_have_no_positives_at_all() -> None:
    image, text, owner = features(1, [2, 2, 0, 2], 8, 4)
    mined = mine(Thresholds(image_text=0.99, keep_ground_truth=False), image, text, owner)
    assert len(mined.rows) == 0
    assert mined.logs()["positives_per_image"] == 0
    assert mined.logs()["ground_truth_dropped"] == 1


def test_the_teacher_rejects_a_bad_own_caption_whatever_the_clauses_say() -> None:
    image, text, owner = features(2, [2] * 6, 16, 2)
    text[0] = -image[owner[0]]
    clauses = Thresholds(image_text=0.7, image_image=0.5, text_text=0.5)
    for keep, drop_below, dropped in ((True, None, 0), (False, None, 0), (False, 0.0, 1)):
        mined = mine(replace(clauses, keep_ground_truth=keep, drop_below=drop_below), image, text, owner)
        own = mined.clause >= GROUND_TRUTH
        assert own.sum() == 12 - dropped
        assert mined.logs()["ground_truth_dropped"] == pytest.approx(dropped / 12)
        assert (0 in mined.cols[own].tolist()) == (not dropped)


def test_logs_count_the_pairs_that_are_not_ground_truth() -> None:
    batch = features(3, [3] * 20, 16, 4)
    mined = mine(EQ1, *batch)
    bits = literal(EQ1, *batch)
    found = bits[bits < GROUND_TRUTH]
    logs = mined.logs()
    assert logs["positives_per_image"] == (bits > 0).sum() / 20
    assert logs["mined_per_image"] == (found > 0).sum() / 20
    for name, bit in (("image_text", 1), ("image_image", 2), ("text_text", 4)):
        assert logs[f"{name}_hits_per_image"] == (found & bit > 0).sum() / 20
        assert logs[f"{name}_only_hits_per_image"] == (found == bit).sum() / 20
        assert logs[f"{name}_hits_per_image"] > 0
