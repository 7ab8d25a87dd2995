from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.mining import Thresholds, mine, score

from .reference import features, literal


@pytest.mark.parametrize("images", [None, range(5, 301)])
def test_precision_and_recall_are_counted_on_captions_that_say_something(images: range | None) -> None:
    limits = Thresholds(image_text=0.72, image_image=0.9, keep_ground_truth=False, drop_below=0.4)
    batch = features(0, [1, 2] * 160, 12, 5)
    random = np.random.default_rng(0)
    truth = (np.arange(320)[:, None] % 5 == batch[2].numpy()[None, :] % 5) & (random.random((320, 480)) < 0.8)
    informative = random.random(480) < 0.7
    mined = mine(limits, *batch, images=images)
    inside = np.isin(np.arange(320), range(320) if images is None else images)[:, None]
    found = (literal(limits, *batch) > 0) & inside & informative
    holds = truth & inside & informative
    other = batch[2].numpy()[None, :] != np.arange(320)[:, None]
    expected = {
        "mining_precision": (found & holds & other).sum() / (found & other).sum(),
        "mining_recall": (found & holds & other).sum() / (holds & other).sum(),
        "positives_precision": (found & holds).sum() / found.sum(),
        "positives_recall": (found & holds).sum() / holds.sum(),
    }
    matrix, said = torch.from_numpy(truth), torch.from_numpy(informative)
    figures = score(mined, matrix, batch[2], said)
    assert figures == expected
    assert len(set(figures.values())) == 4
    assert score(mined, lambda rows: matrix[rows.start : rows.stop], batch[2], said) == figures


def test_figures_without_pairs_are_left_out() -> None:
    batch = features(1, [1] * 6, 8, 6)
    mined = mine(Thresholds(image_text=0.999), *batch)
    truth = torch.eye(6, dtype=torch.bool)[:, batch[2]]
    every = torch.ones(6, dtype=torch.bool)
    assert score(mined, truth, batch[2], every) == {"positives_precision": 1, "positives_recall": 1}
    assert score(mined, truth, batch[2], ~every) == {}
