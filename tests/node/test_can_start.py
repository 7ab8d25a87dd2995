"""What `harness check` builds: models without values, whose weights, tokenizers and sizes must fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.config.model import Model, shipped_config
from harness.models import build_towers
from harness.node.can_start import obstacles
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.data.made import picture

VIT = shipped_config("tiny-vit") or {}


def found(tmp_path: Path, **sections: Any) -> list[str]:
    """What stops the run of a small experiment with these sections: key and sentence."""
    base = {"train": {"duration": "4 steps", "global_batch_size": 8}, "model": {"name": "tiny-vit"}}
    experiment = Experiment.model_validate({**base, **sections})
    ablation = Ablation(question="?", experiment=experiment, baseline="a", arms={"a": {}}, primary="train/loss")
    project = Project(Settings(store=tmp_path / "store"), Store(tmp_path / "store"))
    return [f"{one.key}: {one.error}" for one in obstacles(project.plan(ablation))]


def config(**changes: Any) -> dict[str, Any]:
    return {**VIT, **{name: {**VIT[name], **part} for name, part in changes.items()}}


def test_what_fits_starts(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    state = build_towers(Model(name="tiny-vit")).model.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pt")
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "a.safetensors")
    for file in ("a.pt", "a.safetensors"):
        assert found(tmp_path, model={"name": "tiny-vit", "weights": str(tmp_path / file)}) == []
    small = {"name": "mine", "config": VIT, "weights": str(tmp_path / "a.pt")}
    taught = {"kind": "open_clip", "model": "mine", "config": VIT, "weights": str(tmp_path / "a.safetensors")}
    assert found(tmp_path, model=small, teacher=taught, loss={"kind": "otter"}) == []


def test_a_teachers_crop_fits_into_what_its_images_are_resized_to(tmp_path: Path) -> None:
    torch.save(build_towers(Model(name="tiny-vit")).model.state_dict(), tmp_path / "a.pt")
    size = VIT["vision_cfg"]["image_size"]
    taught = {"kind": "open_clip", "model": "mine", "config": VIT, "weights": str(tmp_path / "a.pt")}
    trained = {"kind": "experiment", "experiment": {"model": {"name": "tiny-vit"}}}
    for teacher in (taught, trained):
        assert found(tmp_path, teacher={**teacher, "resize": size}, loss={"kind": "otter"}) == []
        (said,) = found(tmp_path, teacher={**teacher, "resize": size - 1}, loss={"kind": "otter"})
        assert said.startswith(
            f"teacher.resize: teacher.resize: images are resized to {size - 1} px, but the teacher's"
        )


@pytest.mark.parametrize(
    "evaluation", [{"sets": ["shapes"], "similarity": "token_wise"}, {"sets": ["shapes", "shapes@token_wise"]}]
)
def test_token_wise_similarity_needs_towers_with_tokens(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    assert found(tmp_path, evaluation=evaluation) == []
    resnet = config(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None})
    resnet = {**resnet, "vision_cfg": {key: one for key, one in resnet["vision_cfg"].items() if key != "mlp_ratio"}}
    assert found(tmp_path, model={"name": "mine", "config": resnet}, evaluation={"sets": ["shapes"]}) == []
    (said,) = found(tmp_path, model={"name": "mine", "config": resnet}, evaluation=evaluation)
    assert said.startswith("model: model: mine gives no token features to token-wise similarity: its image tower is")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_shape(tmp_path: Path, suffix: str) -> None:
    state = dict(build_towers(Model(name="tiny-vit")).model.state_dict())
    state["visual.conv1.weight"] = state["visual.conv1.weight"][:, :, :1].contiguous()
    del state["visual.proj"]
    file = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(state, file)
    else:
        save_file(state, file)
    (said,) = found(tmp_path, model={"name": "tiny-vit", "weights": str(file)})
    assert said.startswith(f"model: {file}: does not fit the model (1 missing: visual.proj; 1 of another shape: ")
    taught = {"kind": "open_clip", "model": "m", "config": VIT, "weights": str(file)}
    (said,) = found(tmp_path, teacher=taught, loss={"kind": "otter"})
    assert said.startswith(f"teacher: {file}: does not fit")
    assert found(tmp_path, teacher=taught) == []  # unused


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "ViT-B-32", "weights": "openaii"}, "model.weights: there are no weights 'openaii' of ViT-B-32; did"),
        (
            {"name": "ViT-B-32", "weights": "openai"},
            "model.weights: weights 'openai' of ViT-B-32 cannot be loaded: they",
        ),
        ({"name": "ViT-B-32", "weights": "laion2b_e16"}, "are not in open_clip's cache on this machine"),
        ({"name": "ViT-B-23"}, "model.name: there is no model 'ViT-B-23'; did you mean 'ViT-B-32'?"),
        ({"name": "m", "config": config(vision_cfg={"nonsense": 1})}, "model.config: open_clip cannot build it"),
        ({"name": "m", "config": config(text_cfg={"heads": 5})}, "model.config: "),
        (
            {"name": "m", "config": config(text_cfg={"hf_tokenizer_name": "/none/such"})},
            "model.config: its tokenizer cannot be loaded on this machine",
        ),
        (
            {"name": "m", "config": config(vision_cfg={"output_tokens": False, "patch_size": 64})},
            "model.config: ",
        ),
    ],
)
def test_a_model_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (sentence,) = found(tmp_path, model=model)
    assert said in sentence


def test_what_the_machine_or_the_model_cannot_do(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        assert "there is no GPU here" in found(tmp_path, resources={"device": "cuda"})[0]
    (said,) = found(tmp_path, train={"duration": "4 steps", "global_batch_size": 8, "optimiser": {"no_decay": ["nix"]}})
    assert said.startswith("train.optimiser.no_decay: ")


def test_fewer_captions_than_are_asked_for(tmp_path: Path) -> None:
    rows = [{"path": f"{number}.png", "title": "a", "more": ["b", "c"]} for number in range(8)]
    rows[3]["more"] = ["b"]
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = {
        "kind": "table",
        "path": str(tmp_path / "a.parquet"),
        "image": "path",
        "raw": "title",
        "pseudo": {"m": "more"},
    }
    assert found(tmp_path, data=data, captions={"source": "m", "count": 1}) == []
    (said,) = found(tmp_path, data=data, captions={"source": "m", "count": 2})
    assert "1 of 8 samples have fewer than the 2 captions of 'm'" in said
