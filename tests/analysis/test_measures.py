"""Blockwise measures against brute force in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis import measures

CPU = torch.device("cpu")
Halves = npt.NDArray[np.float16]


def features(seed: int, rows: int, width: int = 8) -> Halves:
    made = np.random.default_rng(seed).normal(size=(rows, width))
    unit: Halves = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)
    return unit


def exact(rows: Halves) -> npt.NDArray[np.float64]:
    return rows.astype(np.float64)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "BLOCK", 7)
    monkeypatch.setattr(measures, "QUERIES", 5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), texts=st.integers(2, 40), captions=st.integers(2, 60), k=st.integers(1, 20))
def test_mean_of_the_nearest_captions_counts_equal_texts_as_often_as_they_occur(
    seed: int, texts: int, captions: int, k: int
) -> None:
    pool = features(seed, texts)
    chance = np.random.default_rng(seed)
    rows = np.concatenate([np.arange(texts), chance.integers(0, texts, captions)])
    counts = np.bincount(rows, minlength=texts).astype(np.int64)
    own = rows[chance.integers(0, len(rows), 9)].astype(np.int64)
    found = measures.mean_of_nearest(measures.nearest(pool[own], pool, k + 1, CPU), counts, own, k)
    every = exact(pool)[rows]
    for text, mean in zip(own, found, strict=True):
        one = int(np.flatnonzero(rows == text)[0])
        others = np.delete(every @ every[one], one)
        assert mean == pytest.approx(np.sort(others)[::-1][:k].mean(), abs=1e-5)


def test_the_nearest_other_is_never_the_row_itself() -> None:
    pool = np.concatenate([features(0, 20), features(0, 3)])  # three rows are there twice
    own = np.arange(23)
    similarity, other = measures.nearest_other(measures.nearest(pool, pool, 2, CPU), own)
    scores = exact(pool) @ exact(pool).T
    np.fill_diagonal(scores, -2)
    assert similarity == pytest.approx(scores.max(axis=1), abs=1e-5)
    assert (other != own).all()
    assert other[:3].tolist() == [20, 21, 22]


def test_images_against_their_captions_and_captions_among_themselves() -> None:
    counts = np.array([3, 1, 5, 2])
    starts = np.concatenate([[0], np.cumsum(counts)])
    image, captions = features(1, 4), features(2, int(counts.sum()))
    single, mean = measures.with_image(measures.unit(image, CPU), measures.unit(captions, CPU), starts)
    within = measures.within(measures.unit(captions, CPU), starts)
    expected = []
    for number in range(4):
        own = exact(captions)[starts[number] : starts[number + 1]]
        pixels, average = exact(image)[number], own.mean(axis=0)
        assert single[number] == pytest.approx(pixels @ own[0], abs=1e-5)
        assert mean[number] == pytest.approx(pixels @ average / np.linalg.norm(average), abs=1e-5)
        if len(own) > 1:
            scores = own @ own.T
            expected.append(scores[~np.eye(len(own), dtype=bool)].mean())
    assert within == pytest.approx(expected, abs=1e-5)


def test_the_rank_of_the_true_caption_counts_those_that_are_better() -> None:
    image, text = features(3, 30), features(4, 30)
    text[7] = text[3]  # an equal caption is not better
    ranks = measures.ranks(measures.unit(image, CPU), measures.unit(text, CPU))
    scores = exact(image) @ exact(text).T
    assert ranks.tolist() == [1 + int((row > row[number] + 1e-9).sum()) for number, row in enumerate(scores)]
