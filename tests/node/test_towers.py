"""Towers against open_clip's own forward pass, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from harness.base.errors import ModelError
from harness.config.model import Model
from harness.models import Towers, build_towers, load_weights
from harness.models.towers import length_groups
from tests.node.small import CONFIG

TEXTS = [
    "a",
    "a red circle",
    "a red circle",
    "a small photo of a large blue square on a striped background " * 3,
    "x y",
]


@pytest.fixture(scope="module")
def towers() -> Towers:
    return build_towers(Model(name="small", config=CONFIG), seed=3).double().eval()


def test_texts_equal_open_clip_values_and_gradients(towers: Towers) -> None:
    tokens, weight = towers.tokenize(TEXTS), torch.randn(len(TEXTS), 16, dtype=torch.float64)
    results = []
    plain: Any = towers.model
    for encode in (lambda t: F.normalize(plain.encode_text(t), dim=-1), towers.encode_text):
        towers.zero_grad()
        features: Any = encode(tokens).double()
        (features * weight).sum().backward()
        gradients = {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}
        results.append((features.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = results[1], results[0]
    # encode_text hands out float32 features, so that is the precision of the comparison
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert our_gradients.keys() == their_gradients.keys()
    for name in our_gradients:
        scale = their_gradients[name].abs().max().clamp(min=1e-3)
        assert (our_gradients[name] - their_gradients[name]).abs().max() < 1e-5 * scale, name


@given(st.lists(st.integers(1, 77), min_size=1, max_size=40))
@settings(deadline=None)
def test_length_groups_hold_every_text_once_and_are_long_enough(lengths: list[int]) -> None:
    groups = length_groups(torch.tensor(lengths), 77)
    assert sorted(i for _, group in groups for i in group.tolist()) == list(range(len(lengths)))
    assert all(lengths[i] <= length <= 77 for length, group in groups for i in group.tolist())
    assert len(groups) <= 9


def test_bidirectional_text_towers_are_not_trimmed() -> None:
    config = CONFIG | {"text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}}  # type: ignore[dict-item]
    assert not build_towers(Model(name="small", config=config)).trims


def test_same_seed_same_weights_and_no_trace_in_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (build_towers(Model(name="small", config=CONFIG), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_preprocess_equals_open_clip(towers: Towers) -> None:
    from PIL import Image

    image = Image.effect_noise((50, 40), 80).convert("RGB")
    _, _, theirs = open_clip.create_model_and_transforms("RN50", force_image_size=32, pretrained=None)
    assert torch.equal(towers.preprocess(image), theirs(image))


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"model.name: there is no model 'ViT-B-6'; did you mean 'ViT-B-16'"):
        build_towers(Model(name="ViT-B-6"))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, towers: Towers) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {"visual.conv1.weight": torch.zeros(1)}}, file)
    with pytest.raises(ModelError, match=r"weights.pt: does not fit the model"):
        load_weights(towers.model, file)
    with pytest.raises(ModelError, match="there is no such checkpoint"):
        build_towers(Model(name="small", config=CONFIG, weights=str(tmp_path / "none.pt")))


def test_a_config_that_open_clip_cannot_build() -> None:
    with pytest.raises(ModelError, match=r"model.config: open_clip cannot build it"):
        build_towers(Model(name="small", config=CONFIG | {"text_cfg": {"no_such_key": 1}}))
