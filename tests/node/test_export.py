"""Exported models, loaded by the real peers: open_clip, clip_benchmark and transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from harness import worker
from harness.base.errors import ModelError, StoreError
from harness.models import build_towers, load_weights
from harness.models.towers import Towers
from harness.node.export import Format, export
from harness.runs.folder import RunFolder
from tests.data.made import picture
from tests.node.small import experiment, planned, prepared

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TEXTS = ["a red disc", "three dogs run, and a cat sleeps", "ä", "word " * 40]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished(tmp_path_factory.mktemp("vit"), VIT, {"kind": "infonce", "logit_scale": 20.0})


def finished(root: Path, config: dict[str, Any], loss: dict[str, Any]) -> RunFolder:
    train = {"duration": "3 steps", "global_batch_size": 16, "optimiser": {"lr": 1e-2}}
    one = experiment(model={"name": "mine", "config": config}, train=train, loss=loss)
    folder = prepared(root, planned(root, one)[1])
    assert worker.main(folder.path) == worker.DONE
    return folder


def own(run: RunFolder, config: dict[str, Any]) -> Any:
    from harness.config.model import Model

    towers = build_towers(Model(name="mine", config=config))
    load_weights(towers.model, run.weights)
    return towers.eval()


def pictures() -> list[Image.Image]:
    dice = np.random.default_rng(1)
    shapes = [(50, 40), (32, 32), (70, 33)]
    return [Image.fromarray(dice.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def features(towers: Towers) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        images = towers.encode_image(torch.stack([towers.preprocess(one) for one in pictures()]))
        return images, towers.encode_text(towers.tokenize(TEXTS))


def test_open_clip_loads_it_with_the_learned_temperature(run: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "out" / "model"
    export(run, target, "open_clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{target}")
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{target}")
    model.eval()
    with torch.no_grad():
        images = normalize(model.encode_image(torch.stack([preprocess(one) for one in pictures()])), dim=-1)
        texts = normalize(model.encode_text(tokenizer(TEXTS)), dim=-1)
    ours = features(own(run, VIT))
    assert torch.allclose(images, ours[0], atol=1e-6)
    assert torch.allclose(texts, ours[1], atol=1e-6)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(run.record().final["logit_scale"], rel=1e-6)
    assert float(model.logit_scale.detach().exp()) != pytest.approx(1 / 0.07, rel=0.1)
    card = (target / "README.md").read_text()
    assert run.id in card
    assert all(one.protocol_id in card for one in run.record().evaluations)
    with pytest.raises(StoreError, match="is there already"):
        export(run, target, "open_clip")


def test_clip_benchmark_loads_it(run: RunFolder, tmp_path: Path) -> None:
    from clip_benchmark.models import load_clip

    export(run, tmp_path / "m", "open_clip")
    model, _, _ = load_clip("open_clip", f"local-dir:{tmp_path / 'm'}", None, str(tmp_path), device="cpu")
    assert torch.equal(model.visual.conv1.weight, own(run, VIT).model.visual.conv1.weight)


def test_a_bias_goes_along(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", VIT, {"kind": "sigmoid"})
    export(run, tmp_path / "m", "open_clip")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'm'}")
    assert float(model.logit_bias) == pytest.approx(run.record().final["logit_bias"], rel=1e-6)


def test_transformers_loads_it_with_the_same_features(run: RunFolder, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    export(run, tmp_path / "m", "hf")
    model: Any = CLIPModel.from_pretrained(tmp_path / "m")
    processor: Any = CLIPProcessor.from_pretrained(tmp_path / "m")
    model.eval()
    towers = own(run, VIT)
    tokens = processor.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    ours = towers.tokenize(TEXTS).long()
    for theirs, mine in zip(tokens["input_ids"], ours, strict=True):
        length = int(mine.argmax()) + 1
        assert theirs[:length].tolist() == mine[:length].tolist()
    pixels = torch.stack([towers.preprocess(one) for one in pictures()])
    with torch.no_grad():
        found = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    images, texts = features(towers)
    assert torch.allclose(found.image_embeds, images, atol=1e-6)
    assert torch.allclose(found.text_embeds, texts, atol=1e-6)
    assert float(model.logit_scale) == pytest.approx(math.log(run.record().final["logit_scale"]), rel=1e-6)
    smooth = [picture(number, 80, 64) for number in range(3)]
    theirs = processor.image_processor(smooth, return_tensors="pt")["pixel_values"]
    mine = torch.stack([towers.preprocess(one) for one in smooth])
    assert (theirs - mine).abs().mean() < 0.02  # both resize and crop, and round once more or less


def test_what_transformers_cannot_hold_gets_a_sentence(tmp_path: Path) -> None:
    resnet = VIT | {"vision_cfg": {**VIT["vision_cfg"], "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
    run = finished(tmp_path / "run", resnet, {"kind": "infonce"})
    with pytest.raises(ModelError, match="its image tower is not a ViT of CLIP; export it with --to open_clip"):
        export(run, tmp_path / "m", "hf")
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob(".export-*"))
    export(run, tmp_path / "m", "safetensors")
    state = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.equal(state["visual.conv1.weight"], own(run, resnet).model.visual.conv1.weight)


def test_an_unfinished_run_is_not_exported(tmp_path: Path) -> None:
    folder = prepared(tmp_path, planned(tmp_path, experiment())[1])
    with pytest.raises(StoreError, match="is not finished"):
        export(folder, tmp_path / "m", "open_clip")


def test_the_exported_folder_comes_in_again(run: RunFolder, tmp_path: Path) -> None:
    formats: tuple[Format, ...] = ("open_clip", "hf")
    for to in formats:
        export(run, tmp_path / to, to)
        towers = build_towers_at(tmp_path / to)
        assert torch.allclose(features(towers)[0], features(own(run, VIT))[0], atol=1e-6)
    assert json.loads((tmp_path / "open_clip" / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 24


def build_towers_at(folder: Path) -> Towers:
    from harness.config.model import Model

    return build_towers(Model(name="mine", config=VIT, weights=str(folder))).eval()
