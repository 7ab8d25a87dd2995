"""Texts through a tower in batches without padding: the features of whole texts, and bounded batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from harness.config.model import Model
from harness.evaluation.towers import SetEncoder, filled
from harness.models import build_towers

MODEL = Model(
    name="made",
    config={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
)
TEXTS = [
    "!",
    "",
    "a cat!",
    "wow !!! a dog ! !",
    "a " * 100,
    *(f"number {i} {'of many ' * (i % 11)}" for i in range(60)),
]
"""The id of `!` is 0, as that of padding."""


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_features_are_those_of_whole_texts_one_by_one(batch_size: int) -> None:
    towers = build_towers(MODEL).eval()
    encoder = SetEncoder(towers, batch_size=batch_size, device=torch.device("cpu"))
    assert towers.trims
    with torch.inference_mode():
        tokens = towers.tokenize(TEXTS)
        whole = torch.cat([normalize(towers.model.encode_text(row[None]), dim=-1) for row in tokens])  # type: ignore[operator]
        assert torch.allclose(encoder.texts(TEXTS), whole, atol=2e-6)


def test_a_batch_never_holds_more_tokens_than_its_texts_of_full_length_would(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = build_towers(MODEL).eval()
    seen: list[Tensor] = []
    encode = towers.encode_text

    def watched(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return encode(tokens)

    monkeypatch.setattr(towers, "encode_text", watched)
    with torch.inference_mode():
        SetEncoder(towers, batch_size=2, device=torch.device("cpu")).texts(TEXTS)
    assert max(batch.numel() for batch in seen) <= 2 * 77
    assert sum(len(batch) for batch in seen) == len(TEXTS)
    assert len(seen) < len(TEXTS) / 2


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 80))
def test_batches_are_full_and_nothing_is_lost(given_lengths: list[int], budget: int) -> None:
    lengths = torch.tensor(given_lengths)
    order = torch.argsort(lengths, stable=True)
    batches = list(filled(order, lengths, budget))
    assert torch.equal(torch.cat(batches), order)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= budget
        if following is not None:
            assert (len(batch) + 1) * int(lengths[following[0]]) > budget
