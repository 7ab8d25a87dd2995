"""The whole analysis of a small world: its numbers, and a page that stands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.analysis import Options, analyse, write_page
from harness.config.captions import Captions
from harness.config.data import ShapesData
from harness.config.model import Model
from harness.data.dataset.dataset import open_dataset
from harness.features import teacher_features
from harness.features.compute import Wanted
from harness.models import build_towers
from tests.node.small import CONFIG

CPU = torch.device("cpu")


def test_numbers_agree_with_the_features_and_the_page_stands_alone(tmp_path: Path) -> None:
    dataset = open_dataset(ShapesData(train_samples=48, test_samples=36), tmp_path / "data")
    captions = Captions(source="captioner", count=5)
    towers = build_towers(Model(name="small", config=CONFIG)).eval()
    features = teacher_features(tmp_path / "features", dataset, captions, lambda: towers, CPU)
    found = analyse(Wanted(tmp_path / "features", dataset, ("raw", "captioner")), Options(shown=3), CPU)

    every = np.arange(48)
    image = features.image(every).double()
    raw = features.text(every, np.full(48, -1), np.zeros(48, dtype=np.int64)).double()
    pseudo = torch.stack(
        [features.text(every, np.zeros(48, dtype=np.int64), np.full(48, n)) for n in range(5)]
    ).double()
    assert found.sources["raw"].single == pytest.approx((image * raw).sum(1).numpy(), abs=1e-5)
    scores = image @ raw.T
    ranks = (scores > scores.diagonal().unsqueeze(1) + 1e-7).sum(1) + 1
    assert found.sources["raw"].ranks.mean() == pytest.approx(ranks.double().mean().item(), abs=0.2)
    among = torch.einsum("ane,bne->abn", pseudo, pseudo)
    pairs = (among.sum((0, 1)) - among.diagonal(dim1=0, dim2=1).sum(1)) / 20
    assert found.sources["captioner"].within == pytest.approx(pairs.numpy(), abs=1e-5)
    texts = [dataset.raw(i) for i in range(48)]
    assert found.sources["raw"].common[0][1] == max(texts.count(text) for text in texts)
    assert found.sources["raw"].distinct == len(set(texts))
    foreign = scores[~torch.eye(48, dtype=torch.bool)]
    threshold = found.sources["raw"].quantiles[0.9]["image_text"]
    assert (foreign > threshold).double().mean() == pytest.approx(0.1, abs=0.01)
    assert found.sources["raw"].passing["image_text"] == pytest.approx(
        float((foreign > 0.27).double().mean()), abs=1e-3
    )

    write_page(tmp_path / "page.html", found, dataset, "<script>alert(1)</script>")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 6
    told = json.loads((tmp_path / "page.json").read_text())
    assert told["sources"]["captioner"]["captions"] == 240
