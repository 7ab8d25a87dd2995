"""The checks that `harness part check` makes of a miner: ours pass, and each check finds its fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from harness.config.mining import Mining, ThresholdMining
from harness.mining.build import Calibration, MiningRule, build_rule
from harness.mining.conformance import check_mining_part
from harness.mining.placebo import DRAWN
from harness.mining.positives import GROUND_TRUTH
from tests.head.own_parts import MINER, in_this_process, written
from tests.mining.reference import features

__all__ = ["in_this_process"]
pytestmark = pytest.mark.usefixtures("in_this_process")


def own(folder: Path, text: str = MINER, **fields: Any) -> Mining:
    spec: Mining = TypeAdapter(Mining).validate_python({**written(folder, text), "name": "NearestMining", **fields})
    return spec


@pytest.mark.parametrize(
    "spec",
    [
        ThresholdMining(image_text=0.5),
        ThresholdMining(image_text={"quantile": 0.9}, image_image={"quantile": 0.9}, text_text=0.8),
        ThresholdMining(image_text=0.5, keep_ground_truth=False),
    ],
)
def test_ours_conform(spec: Mining) -> None:
    assert [found for found in check_mining_part(spec) if found.problem] == []


@pytest.mark.parametrize(
    ("old", "new", "check", "said"),
    [
        ("as(captions)[kept]", "as(captions)[kept] + 99", "pairs are of the batch, each once", "it names image 10"),
        ("image[rows].float() @", "torch.rand(len(rows), text.shape[1]) @", "a function of the features",
         "a second call finds other pairs: "),
        ("rows = torch", "image.mul_(2)\n        rows = torch", "a function of the features",
         "it changes the features that it gets"),
        ("torch.arange(images.start, images.stop", "torch.arange(images.stop - images.start", "two processes are one",
         "for images 4 to 7, it returns others"),
        ("found > self.floor", "found >= found.max()", "two processes are one",
         "two processes find other pairs than one"),
        ("found > self.floor", "(found > self.floor) & (captions % 2 == 0)",
         "images may be permuted with their captions", "permuting images with their captions changes the pairs: "),
        ("found > self.floor", "found > self.flor", "two processes are one", "has no attribute 'flor'"),
    ],
)  # fmt: skip
def test_each_check_finds_its_fault(tmp_path: Path, old: str, new: str, check: str, said: str) -> None:
    assert MINER.count(old) == 1
    found = {one.check: one.problem for one in check_mining_part(own(tmp_path, MINER.replace(old, new)))}
    assert said in found[check]


def test_a_rule_of_pairs_keeps_the_ground_truth(tmp_path: Path) -> None:
    image, text, owner = features(0, [2, 1, 3, 2], 8, 2)
    rule = build_rule(own(tmp_path, count=2, floor=-1), lambda: Calibration(image, text, owner))
    assert isinstance(rule, MiningRule)
    mined = rule.mine(image, text, owner, range(1, 3))
    similarity = (image @ text.T).masked_fill(owner[None] == torch.arange(4)[:, None], -2)
    wanted = (owner[None] == torch.arange(4)[:, None]) | (similarity >= similarity.topk(2).values[:, 1:])
    wanted[[0, 3]] = False
    assert torch.equal(torch.stack([mined.rows, mined.cols], 1), wanted.nonzero())
    is_own = owner[mined.cols] == mined.rows
    assert torch.equal(mined.clause.long(), torch.where(is_own, GROUND_TRUTH, DRAWN))
    assert (mined.captions, mined.logs()["mined_per_image"]) == (4, 2.0)
    assert rule.logs() == {"mining_floor": -1}
