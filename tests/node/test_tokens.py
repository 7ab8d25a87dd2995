"""Token features of the towers against open_clip's own forward pass, and runs that are trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import text_global_pool
from pydantic import ValidationError
from torch.nn import functional as F  # noqa: N812

from harness.base.errors import ModelError
from harness.config.model import Model
from harness.models import Towers, build_towers, token_mask
from harness.worker import main
from tests.node.small import CONFIG, experiment, planned, prepared

VIT = {
    **CONFIG,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
}
TEXTS = ["a", "a red circle", "a small photo of a large blue square on a striped background " * 3, "a red circle"]


def _towers(**vision: Any) -> Towers:
    config = {**VIT, "vision_cfg": VIT["vision_cfg"] | vision}  # type: ignore[operator]
    return build_towers(Model(name="small", config=config), seed=3).eval()


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_image_tokens_are_the_pooled_feature_and_the_projected_patches(vision: dict[str, Any]) -> None:
    towers = _towers(**vision)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = towers.encode_image_tokens(images)
    model: Any = towers.model.visual
    model.output_tokens = True
    _, patches = model(images)
    patches = model.ln_post(patches) if vision.get("final_ln_after_pool") else patches
    model.output_tokens = False
    assert features.shape == (3, 1 + 4, 16)
    torch.testing.assert_close(features[:, 0], towers.encode_image(images))
    torch.testing.assert_close(features[:, 1:], F.normalize(patches @ model.proj, dim=-1))


@pytest.mark.parametrize("causal", [True, False])
def test_text_tokens_are_those_of_the_whole_context(causal: bool) -> None:
    config = {**VIT, "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": not causal}}  # type: ignore[dict-item]
    towers = build_towers(Model(name="small", config=config), seed=3).eval()
    tokens, model = towers.tokenize(TEXTS), towers.model
    features, mask = towers.encode_text_tokens(tokens), token_mask(tokens)
    plain: Any = model
    hidden = plain.token_embedding(tokens) + plain.positional_embedding
    hidden = plain.ln_final(plain.transformer(hidden, attn_mask=plain.attn_mask)) @ plain.text_projection
    whole = F.normalize(hidden, dim=-1)
    torch.testing.assert_close(features[:, 1:][mask], whole[mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[:, 0], towers.encode_text(tokens), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[:, 0], text_global_pool(whole, tokens), atol=1e-5, rtol=1e-4)
    assert mask.sum(1).tolist() == (tokens != 0).sum(1).tolist()


@pytest.mark.parametrize(
    ("loss", "count"), [({"kind": "filip"}, 1), ({"kind": "filip", "pooled_weight": 0}, 0), ({"kind": "dreamlip"}, 2)]
)
def test_a_run_on_tokens_trains_the_towers(tmp_path: Path, loss: dict[str, Any], count: int) -> None:
    captions = {"source": "captioner", "count": count}
    one = experiment(loss=loss, model={"name": "vit", "config": VIT}, captions=captions)
    _, run = planned(tmp_path, one)
    folder = prepared(tmp_path, run)
    assert main(folder.path) == 0
    losses = [line.values["loss"] for line in folder.step_metrics()]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert {each.set for each in folder.record().evaluations} == {"shapes", "shapes_retrieval"}


def test_towers_without_tokens_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="filip compares tokens, but the model's towers give pooled features"):
        experiment(loss={"kind": "filip"})
    with pytest.raises(ValidationError, match="dreamlip compares tokens"):
        experiment(loss={"kind": "dreamlip"}, model={"name": "RN50"})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vision_cfg": {"attentional_pool": True, "attn_pooler_queries": 4}}, "class token"),
        ({"custom_text": True}, "text tower is not one of CLIP's"),
    ],
)
def test_built_towers_that_give_none_say_why(change: dict[str, Any], why: str) -> None:
    config = VIT | change
    if "vision_cfg" in change:
        config["vision_cfg"] = VIT["vision_cfg"] | change["vision_cfg"]
    towers = build_towers(Model(name="odd", config=config))
    with pytest.raises(ModelError, match=f"odd gives no token features to a loss on tokens: .*{why}"):
        towers.require_tokens()
