from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.mining import Mined, Thresholds, mine

from .reference import features, literal

EQ1 = Thresholds(image_text=0.75, image_image=0.8, text_text=0.7, image_text_guard=0.5)


def dense(mined: Mined, images: int, captions: int) -> np.ndarray:
    mask = np.zeros((images, captions), dtype=bool)
    mask[mined.rows.numpy(), mined.cols.numpy()] = True
    assert mask.sum() == len(mined.rows), "a pair is listed twice"
    return mask


@st.composite
def cases(draw: st.DrawFn) -> tuple[Thresholds, tuple[Tensor, Tensor, Tensor], int]:
    images = draw(st.integers(1, 12))
    counts = draw(st.lists(st.integers(0, 4), min_size=images, max_size=images).filter(sum))
    data = features(draw(st.integers(0, 10**6)), images, counts, draw(st.sampled_from([1, 2, 8, 33])), 3)
    level = st.none() | st.floats(-0.99, 0.99)
    keep = draw(st.booleans())
    thresholds = Thresholds(
        image_text=draw(level),
        image_image=draw(level),
        text_text=draw(level),
        image_text_guard=draw(level),
        text_text_reduction=draw(st.sampled_from(["mean", "max", "block_mean"])),
        keep_ground_truth=keep,
        drop_below=None if keep else draw(level),
    )
    return thresholds, data, draw(st.integers(1, 200))


@given(cases())
@settings(max_examples=300, deadline=None)
def test_equals_eq_1_with_every_option_and_any_tile(
    case: tuple[Thresholds, tuple[Tensor, Tensor, Tensor], int],
) -> None:
    thresholds, (image, text, owner), tile = case
    mined = mine(thresholds, image, text, owner, tile=tile)
    np.testing.assert_array_equal(dense(mined, len(image), len(text)), literal(thresholds, image, text, owner))
    codes = mined.rows * len(text) + mined.cols
    assert torch.equal(codes, codes.sort().values)
