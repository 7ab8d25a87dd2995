"""The ideal miner: what it adds is true, as precise and as much as asked for, the same for any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.config.experiment import Experiment
from harness.config.mining import TruthMining
from harness.mining import GROUND_TRUTH, Mined, TruthRule
from tests.training.made import attempt, taken, train
from tests.training.made import experiment as small

CAPTIONS = 3
CAPTIONER = {"source": "captioner", "count": 3}
World = tuple[Any, Any, torch.Tensor]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Which of a few captions are true of a few images [N, M], which say anything [M], and whose they are [M]."""
    number = draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    told = random.random(number * CAPTIONS) < 0.8
    return random.random((number, len(told))) < draw(st.floats(0, 1)), told, torch.arange(number).repeat_interleave(3)


def added(mined: Mined) -> set[tuple[int, int]]:
    other = mined.clause < GROUND_TRUTH
    return set(zip(mined.rows[other].tolist(), mined.cols[other].tolist(), strict=True))


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_all_that_is_true_and_says_something(world: World) -> None:
    true, told, owner = world
    mined = TruthRule(TruthMining()).mine(true, told, owner, range(len(true)), batch=0)
    expected = {(i, j) for i, j in np.argwhere(true & told).tolist() if owner[j] != i}
    assert added(mined) == expected
    assert mined.captions == int((mined.clause >= GROUND_TRUTH).sum()) == len(owner)
    assert ((mined.rows * len(owner) + mined.cols).diff() > 0).all()  # sorted, and no pair twice


@given(worlds(), st.integers(1, 5), st.floats(0.1, 1), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_ranks_draw_what_one_process_draws(world: World, most: int, precision: float, cut: int) -> None:
    true, told, owner = world
    rule = TruthRule(TruthMining(most=most, precision=precision))
    whole = rule.mine(true, told, owner, range(len(true)), batch=7)
    parts = [part for part in (range(min(cut, len(true))), range(min(cut, len(true)), len(true))) if len(part)]
    drawn = [rule.mine(true, told, owner, part, batch=7) for part in parts]
    assert torch.equal(torch.cat([one.cols for one in drawn]), whole.cols)
    assert torch.equal(torch.cat([one.rows for one in drawn]), whole.rows)
    assert max((torch.bincount(one.rows).max() for one in drawn), default=0) <= most + CAPTIONS


def test_precision_and_number_are_those_asked_for() -> None:
    random = np.random.default_rng(0)
    true, told = random.random((64, 192)) < 0.3, np.ones(192, dtype=np.bool_)
    owner = torch.arange(64).repeat_interleave(3)
    right = total = 0
    for batch in range(40):
        mined = TruthRule(TruthMining(most=5, precision=0.7)).mine(true, told, owner, range(64), batch)
        pairs = added(mined)
        right += sum(bool(true[i, j]) for i, j in pairs)
        total += len(pairs)
    assert total == 40 * 64 * 5
    assert right / total == pytest.approx(0.7, abs=0.01)  # 3.5 of 5: rounded up and down equally often


def test_without_false_captions_all_stay_true() -> None:
    true, told = np.ones((4, 4), dtype=np.bool_), np.ones(4, dtype=np.bool_)
    mined = TruthRule(TruthMining(precision=0.5)).mine(true, told, torch.arange(4), range(4), batch=1)
    assert len(added(mined)) == 4 * 3


@pytest.mark.parametrize("precision", [1.0, 0.5])
def test_a_run_logs_the_precision_that_was_asked_for(tmp_path: Path, precision: float) -> None:
    mining = {"kind": "truth", "precision": precision}
    _, trainer, student = attempt(
        tmp_path, small(train=train(6), mining=mining, captions=CAPTIONER, loss={"kind": "supcon_out"})
    )
    logs = taken(trainer, student, 6)
    assert np.mean([one["mining_precision"] for one in logs]) == pytest.approx(precision, abs=0.06)
    assert all(one["mined_per_image"] > 0 for one in logs)
    if precision == 1:
        assert [one["mining_recall"] for one in logs] == [1.0] * len(logs)


def test_data_without_a_truth_is_refused() -> None:
    with pytest.raises(ValidationError, match=r'nothing tells which captions of data\.kind = "webdataset" are true'):
        Experiment.model_validate({"data": {"kind": "webdataset", "shards": "x.tar"}, "mining": {"kind": "truth"}})
