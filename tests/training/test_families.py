"""Towers of every family train, are locked, learn at layer-wise rates and give activations up; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.base.errors import ModelError
from harness.config.loss import InfoNCE
from harness.config.model import Lock, Model, Optimiser
from harness.config.resources import Resources
from harness.losses import build_objective
from harness.models import Towers, build_towers
from harness.models.fitting import choose_device, fit_out
from harness.training import build_optimiser
from harness.training.optimiser import lock_towers
from tests.node.small import CONFIG
from tests.training.made import VIT, attempt, experiment, gradients, taken, train

TEXT: dict[str, Any] = CONFIG["text_cfg"]  # type: ignore[assignment]
POOLER = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}


def timm(name: str, **arguments: Any) -> dict[str, Any]:
    vision = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    return {"embed_dim": 16, "vision_cfg": vision | {"timm_model_pretrained": False} | arguments, "text_cfg": TEXT}


FAMILIES: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "resnet": CONFIG,
    "convnext": timm("convnext_atto"),
    "coca": {
        "embed_dim": 16,
        "vision_cfg": VIT["vision_cfg"] | POOLER | {"output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}


def built(name: str) -> Towers:
    return build_towers(Model(name=name, config=FAMILIES[name]), seed=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains(name: str, tmp_path: Path) -> None:
    one = experiment(model={"name": name, "config": FAMILIES[name]}, train=train())
    _, trainer, student = attempt(tmp_path, one)
    losses = [line["loss"] for line in taken(trainer, student, 2)]
    assert losses[0] != losses[1]
    trained = {name for name, one in student.towers.named_parameters() if one.requires_grad}
    assert trained == {name for name in gradients(student) if not name.startswith("objective")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViTamin-S", "convnext_base", "coca_ViT-B-32", "RN50", "ViT-B-32"])
def test_names_of_open_clip_encode(name: str) -> None:
    towers = build_towers(Model(name=name)).eval()
    pixels = torch.randn(1, 3, towers.image_size, towers.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = towers.encode_image(pixels)  # of a black picture a fresh ConvNeXt makes zeros
        text = towers.encode_text(towers.tokenize(["a cat"]))
    assert image.shape == text.shape
    for features in (image, text):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(1))


def test_a_locked_tower_does_not_move(tmp_path: Path) -> None:
    recipe = train(lock={"image": True})
    made, trainer, student = attempt(tmp_path, experiment(train=recipe, resources={"micro_batch_size": 8}))
    before = {name: tensor.clone() for name, tensor in student.towers.state_dict().items()}
    taken(trainer, student, 2)
    moved = {name for name, tensor in student.towers.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(name.startswith("model.visual") for name in moved)  # running statistics of its norms included
    assert made.device.type == "cpu"


@pytest.mark.parametrize(
    ("lock", "trained"),
    [
        ({"image": True}, {"text"}),
        ({"image": True, "image_unlocked_groups": 1}, {"text", "image"}),
        ({"text": True, "text_unlocked_layers": 1}, {"text", "image"}),
        ({"text": True}, {"image"}),
    ],
)
def test_locks_as_open_clip_has_them(lock: dict[str, Any], trained: set[str]) -> None:
    towers = built("vit")
    lock_towers(towers, Lock.model_validate(lock))
    parts = {"image": towers.image_parameters, "text": towers.text_parameters}
    shares = {name: sum(one.requires_grad for _, one in part) / len(part) for name, part in parts.items()}
    assert {name for name, share in shares.items() if share > 0} == trained
    assert min(shares.values()) < 1


def test_locks_that_make_no_sense() -> None:
    with pytest.raises(ValidationError, match="both towers are locked, so nothing is trained"):
        Lock(image=True, text=True)
    with pytest.raises(ValidationError, match="only in a locked tower"):
        Lock(text_unlocked_layers=2)
    with pytest.raises(ModelError, match=r"train.lock: open_clip cannot lock resnet so"):
        lock_towers(built("resnet"), Lock(image=True, image_unlocked_groups=2))


def groups(name: str, **fields: Any) -> dict[str, tuple[float, float]]:
    """Peak rate and weight decay of every parameter."""
    towers, objective = built(name), build_objective(InfoNCE())
    optimiser = build_optimiser(Optimiser(**{"lr": 1.0, "weight_decay": 0.3, **fields}), towers, objective)
    names = {id(one): key for key, one in [*towers.named_parameters(), ("log_scale", objective.log_scale)]}
    return {
        names[id(one)]: (group["peak"], group["weight_decay"])
        for group in optimiser.param_groups
        for one in group["params"]
    }


def test_weight_decay_is_on_matrices_alone() -> None:
    found = groups("vit", no_decay=("positional_embedding",))
    assert found["model.visual.conv1.weight"] == (1.0, 0.3)
    assert found["model.visual.ln_pre.weight"] == (1.0, 0.0)
    assert found["model.visual.positional_embedding"] == (1.0, 0.0)
    assert found["model.token_embedding.weight"] == (1.0, 0.3)
    assert found["log_scale"] == (1.0, 0.0)
    with pytest.raises(ModelError, match=r"train.optimiser.no_decay: no parameter has 'postional' in its name"):
        groups("vit", no_decay=("postional",))


def test_rates_of_towers_and_layers() -> None:
    found = {name: peak for name, (peak, _) in groups("vit", layer_decay=0.5, text_lr=0.1).items()}
    assert found["model.visual.proj"] == 1.0
    assert found["model.visual.transformer.resblocks.1.ln_1.weight"] == 0.5
    assert found["model.visual.transformer.resblocks.0.ln_1.weight"] == 0.25
    assert found["model.visual.conv1.weight"] == 0.125
    assert found["model.token_embedding.weight"] == pytest.approx(0.1 * 0.25)
    assert found["model.text_projection"] == pytest.approx(0.1)
    assert found["log_scale"] == 1.0


@pytest.mark.parametrize("name", ["vit", "convnext", "coca"])
def test_activations_computed_again_give_the_same_gradients(name: str) -> None:
    found = []
    for again in (False, True):
        towers = built(name).double().train()
        fit_out(towers, Resources(gradient_checkpointing=again))
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loss = towers.encode_image(images).sum() + towers.encode_text(towers.tokenize(["a cat", "b"])).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        found.append({key: one.grad for key, one in towers.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key])


@pytest.mark.slow
def test_compiled_towers_encode_alike_and_keep_their_names() -> None:
    plain, compiled = built("vit").eval(), built("vit").eval()
    fit_out(compiled, Resources(compile=True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    texts, images = ["a cat", "b"], torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled.encode_image(images), plain.encode_image(images), atol=1e-5, rtol=1e-4)
        tokens = plain.tokenize(texts)
        torch.testing.assert_close(compiled.encode_text(tokens), plain.encode_text(tokens), atol=1e-5, rtol=1e-4)


def test_trimming_is_refused_where_it_is_not_exact() -> None:
    bidirectional = {**VIT, "text_cfg": {**TEXT, "no_causal_mask": True}}
    towers = build_towers(Model(name="both-ways", config=bidirectional))
    fit_out(towers, Resources())
    assert not towers.trims
    with pytest.raises(ModelError, match=r"resources.trim_text: texts of both-ways cannot be trimmed"):
        fit_out(towers, Resources(trim_text="on"))
    causal = built("vit")
    fit_out(causal, Resources(trim_text="off"))
    assert not causal.trims


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(Resources(), 0).type == "cpu"
    with pytest.raises(ModelError, match=r"resources.device: there is no GPU here; use \"auto\" or \"cpu\""):
        choose_device(Resources(device="cuda"), 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = list[int]()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    assert [choose_device(Resources(), number).index for number in (0, 1, 2)] == [0, 1, 0]
    assert current == [0, 1, 0]
    assert choose_device(Resources(device="cpu"), 1).type == "cpu"


def test_a_module_without_layers_has_no_layer_wise_rates() -> None:
    towers = built("vit")
    towers.model.visual = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"train.optimiser.layer_decay: the layers of"):
        build_optimiser(Optimiser(layer_decay=0.5), towers, build_objective(InfoNCE()))
