"""Checkpoints as people have them, read and refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.base.errors import ModelError, SpecError
from harness.config.experiment import OpenClipTeacher
from harness.config.load import load_experiment
from harness.config.loss import InfoNCE, Sigmoid
from harness.config.model import Model
from harness.execute.evaluate import sources_of
from harness.losses import build_objective
from harness.models import build_towers, load_weights
from harness.models.checkpoints import from_hugging_face, read_state, to_hugging_face
from harness.models.towers import Towers
from harness.node.assemble import Assembler
from harness.parallel.process_group import World
from harness.planning.workspace import Project
from harness.runs.identity import identify, weights_id

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> Towers:
    return build_towers(Model(name="made", config=CONFIG), seed=3)


def same(towers: Towers, trained: Towers) -> bool:
    ours, theirs = (dict(one.model.named_parameters()) for one in (towers, trained))
    return all(torch.equal(ours[name], theirs[name]) for name in ours if "logit" not in name)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "open_clip_train": lambda state: {"epoch": 3, "name": "x", "state_dict": state, "optimizer": {"state": {}}},
    "several GPUs": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled": lambda state: {"state_dict": prefixed(state, "_orig_mod.")},
    "compiled on several GPUs": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "several GPUs, compiled": lambda state: prefixed(state, "_orig_mod.module."),
    "a compiled tower": lambda state: {k.replace("visual.", "visual._orig_mod."): v for k, v in state.items()},
    "model": lambda state: {"model": state, "step": 4},
    "nested": lambda state: {"model": {"state_dict": state}},
    "average alone": lambda state: {"model_ema": state, "args": {"lr": 1}},
    "without temperature": lambda state: {k: v for k, v in state.items() if k != "logit_scale"},
    "temperature as a vector": lambda state: state | {"logit_scale": torch.ones(1)},
    "SigLIP's bias": lambda state: state | {"logit_bias": torch.tensor(-10.0)},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_checkpoint_is_read_however_it_is_wrapped(tmp_path: Path, trained: Towers, kind: str) -> None:
    file = tmp_path / "epoch_3.pt"
    torch.save(WRAPPED[kind](trained.model.state_dict()), file)
    assert same(build_towers(Model(name="made", config=CONFIG, weights=str(file)), seed=9), trained)


def test_weights_beside_an_average_are_the_last_ones(tmp_path: Path, trained: Towers) -> None:
    other = build_towers(Model(name="made", config=CONFIG), seed=8).model.state_dict()
    torch.save({"state_dict_ema": other, "state_dict": trained.model.state_dict()}, tmp_path / "x.pt")
    assert same(build_towers(Model(name="made", config=CONFIG, weights=str(tmp_path / "x.pt"))), trained)


def test_safetensors_and_folders(tmp_path: Path, trained: Towers) -> None:
    save_file(
        {k: v.contiguous() for k, v in trained.model.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        assert same(build_towers(Model(name="made", config=CONFIG, weights=str(path))), trained)
    before = weights_id(str(tmp_path))
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "other.safetensors")
    assert weights_id(str(tmp_path)) != before
    with pytest.raises(ModelError, match=r"holds no weights; looked for open_clip_model\.safetensors"):
        build_towers(Model(name="made", config=CONFIG, weights=str(tmp_path)))


def test_a_named_model_reads_them_too(tmp_path: Path) -> None:
    named = build_towers(Model(name="RN50"), seed=1)
    torch.save({"state_dict": prefixed(named.model.state_dict(), "module.")}, tmp_path / "x.pt")
    assert same(build_towers(Model(name="RN50", weights=str(tmp_path / "x.pt")), seed=2), named)


def hugging_face(trained: Towers) -> Any:
    from transformers import CLIPConfig, CLIPModel

    common = {"hidden_act": "gelu", "projection_dim": 24, "num_hidden_layers": 2}
    vision = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 128, "max_position_embeddings": 16}
    tokens = {"vocab_size": 49408, "eos_token_id": 49407}
    config = CLIPConfig(text_config=common | text | tokens, vision_config=common | vision, projection_dim=24)
    model: Any = CLIPModel(config)
    model.load_state_dict(to_hugging_face(trained.model.state_dict()), strict=True)
    return model.eval()


def test_hugging_faces_clip_has_the_same_features_both_ways(tmp_path: Path, trained: Towers) -> None:
    theirs = hugging_face(trained)
    theirs.save_pretrained(tmp_path)
    ours = build_towers(Model(name="made", config=CONFIG, weights=str(tmp_path)), seed=4).eval()
    assert same(ours, trained)
    pixels, tokens = torch.rand(3, 3, 32, 32), ours.tokenize(["a red disc", "two", "three dogs run"])
    with torch.no_grad():
        image, text = theirs.vision_model(pixels).pooler_output, theirs.text_model(tokens).pooler_output
        image, text = theirs.visual_projection(image), theirs.text_projection(text)
        assert torch.allclose(nn.functional.normalize(image, dim=-1), ours.encode_image(pixels), atol=1e-6)
        assert torch.allclose(nn.functional.normalize(text, dim=-1), ours.encode_text(tokens), atol=1e-6)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has the activation quick_gelu, and the model another; .*-quickgelu"):
        load_weights(ours.model, tmp_path)


def test_names_go_to_hugging_face_and_back(trained: Towers) -> None:
    state = trained.model.state_dict()
    back = from_hugging_face(to_hugging_face(state), Path("x"))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(ModelError, match="not CLIP"):
        from_hugging_face({"vision_model.embeddings.patch_embedding.weight": torch.ones(1)}, Path("x"))


def test_what_does_not_fit_is_listed_by_name(tmp_path: Path, trained: Towers) -> None:
    state = trained.model.state_dict()
    for name in [name for name in state if "resblocks.1" in name and name.startswith("visual")]:
        state[f"extra.{name}"] = state.pop(name)
    state["ln_final.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError) as caught:
        load_weights(trained.model, tmp_path / "x.pt")
    said = str(caught.value)
    assert "12 missing: visual.transformer.resblocks.1.attn.in_proj_bias" in said
    assert "12 not of the model: extra.visual.transformer" in said
    assert "1 of another shape: ln_final.bias (3 for 32)" in said
    assert said.count(", ...") == 2
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"args": {"lr": 1}, "step": 3}, "holds no weights that can be found; it holds args, step"),
        ([torch.ones(1)], "holds no state dict"),
        ({"state_dict": {}}, "holds no weights that can be found"),
        (argparse.Namespace(lr=1), "cannot be read as weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=what) as caught:
        read_state(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_a_path_is_relative_to_the_file_that_states_it_slash_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "specs").mkdir()
    for name in ("epoch_3.pt", "my_weights"):
        (tmp_path / "specs" / name).write_bytes(b"x")
    (tmp_path / "model.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    for stated in ("epoch_3.pt", "./epoch_3.pt", "my_weights"):
        spec = tmp_path / "specs" / "x.toml"
        spec.write_text(
            f'model = {{ weights = "{stated}" }}\n'
            f'teacher = {{ kind = "open_clip", model = "mine", weights = "{stated}", config = "../model.json" }}\n'
        )
        experiment = load_experiment(spec)
        assert experiment.model.weights == str((tmp_path / "specs" / stated).resolve())
        assert isinstance(experiment.teacher, OpenClipTeacher)
        assert experiment.teacher.config == CONFIG
    spec.write_text('model = { weights = "gone.pt" }\n')
    with pytest.raises(SpecError, match=r"model.weights: there is no file 'gone.pt'"):
        load_experiment(spec)
    spec.write_text('model = { weights = "openai" }\n')
    assert load_experiment(spec).model.weights == "openai"


def test_the_peers_checkpoint_fits(tmp_path: Path) -> None:
    """open_clip's own model folder."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    theirs = open_clip.create_model(f"local-dir:{tmp_path}")
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    ours = build_towers(Model(name="x", config=CONFIG, weights=str(tmp_path)))
    pixels = torch.rand(2, 3, 32, 32)
    expected = nn.functional.normalize(theirs.eval().encode_image(pixels), dim=-1)
    assert torch.allclose(ours.eval().encode_image(pixels), expected, atol=1e-6)


def test_eval_takes_folders_and_own_architectures(tmp_path: Path, trained: Towers) -> None:
    project = Project.at(tmp_path)
    torch.save(trained.model.state_dict(), tmp_path / "x.pt")
    (tmp_path / "mine.json").write_text(json.dumps(CONFIG))
    (source,) = sources_of(project, [str(tmp_path / "x.pt")], str(tmp_path / "mine.json")).values()
    assert (source.model.name, source.model.config) == ("mine", CONFIG)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(SpecError, match=r"folder: a folder without open_clip_config.json"):
        sources_of(project, [str(folder)], None)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    (source,) = sources_of(project, [str(folder)], None).values()
    assert source.model.config == CONFIG


def test_weights_by_open_clips_tag(tmp_path: Path) -> None:
    project = Project.at(tmp_path)
    named = sources_of(project, ["first=ViT-B-32:openai", "laion400m_e31"], "ViT-B-16")
    assert {name: (one.model.name, one.model.weights, one.weights) for name, one in named.items()} == {
        "first": ("ViT-B-32", "openai", None),
        "laion400m_e31": ("ViT-B-16", "laion400m_e31", None),
    }
    with pytest.raises(SpecError, match="no weights 'opneai' of ViT-B-32; known: openai, "):
        sources_of(project, ["ViT-B-32:opneai"], None)
    with pytest.raises(SpecError, match="no weights of a model 'ViT-B-23'; did you mean 'ViT-B-32'"):
        sources_of(project, ["ViT-B-23:openai"], None)


# SigLIP, tokenizers of Hugging Face, temperature and bias


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate(["<pad>", "<unk>", "</s>", "a", "red", "disc", "two", "dogs"])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizers") / "words"
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@cache
def register_small_vit() -> None:
    """Give timm a ViT like SigLIP's, but small."""
    import timm

    @timm.models.register_model
    def vit_small_test_siglip(pretrained: bool = False, **options: Any) -> nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False}
        make: Any = timm.models.vision_transformer._create_vision_transformer
        model: nn.Module = make("vit_small_test_siglip", pretrained, **sizes, **options)
        return model


def siglip_config(words: Path | str) -> dict[str, Any]:
    """As open_clip's ViT-B-16-SigLIP, but small."""
    register_small_vit()
    vision = {"image_size": 32, "timm_model_name": "vit_small_test_siglip", "timm_pool": "map", "timm_proj": "none"}
    text: dict[str, Any] = {
        "context_length": 16,
        "vocab_size": 8,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
    }
    text |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "hf_tokenizer_name": str(words)}
    tower = {"vision_cfg": vision | {"timm_model_pretrained": False}, "text_cfg": text, "custom_text": True}
    return {"embed_dim": 32, "init_logit_bias": -10, **tower, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}


TEXTS = ["a red disc", "two dogs"]


def test_hugging_faces_siglip_has_the_same_features(tmp_path: Path, words: Path) -> None:
    from transformers import AutoTokenizer, SiglipConfig, SiglipModel

    common: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 128}
    common |= {"num_hidden_layers": 2} | {"hidden_act": "gelu"}
    vision, text = {"image_size": 32, "patch_size": 8}, {"vocab_size": 8, "max_position_embeddings": 16}
    theirs: Any = SiglipModel(SiglipConfig(vision_config=common | vision, text_config=common | text))
    theirs.eval()
    torch.nn.init.constant_(theirs.logit_scale, 2.0)
    torch.nn.init.constant_(theirs.logit_bias, -7.0)
    theirs.save_pretrained(tmp_path)
    ours = build_towers(Model(name="s", config=siglip_config(words), weights=str(tmp_path))).eval()
    assert (round(ours.learned.scale or 0, 4), ours.learned.bias) == (round(float(torch.tensor(2.0).exp()), 4), -7.0)
    pixels, tokens = torch.rand(3, 3, 32, 32), ours.tokenize(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(words)
    assert tokens.tolist() == tokenizer(TEXTS, padding="max_length", max_length=16)["input_ids"]
    with torch.no_grad():
        image, texts = theirs.vision_model(pixels).pooler_output, theirs.text_model(tokens).pooler_output
        assert torch.allclose(nn.functional.normalize(image, dim=-1), ours.encode_image(pixels), atol=1e-6)
        assert torch.allclose(nn.functional.normalize(texts, dim=-1), ours.encode_text(tokens), atol=1e-6)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.5, 0.5]}))
    with pytest.raises(ModelError, match=r"states image_mean \[0.1, 0.5, 0.5\], and the model has \[0.5, 0.5, 0.5\]"):
        build_towers(Model(name="s", config=siglip_config(words), weights=str(tmp_path)), device="meta")


def test_open_clips_siglip_folder_is_read_with_its_tokenizer_and_preprocessing(tmp_path: Path, words: Path) -> None:
    config = siglip_config("timm/ViT-B-16-SigLIP")  # open_clip takes the tokenizer in the folder, not this one
    preprocess = config.pop("preprocess_cfg")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in words.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    stated = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(stated))
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    (source,) = sources_of(Project.at(tmp_path), [str(folder)], None).values()
    ours = build_towers(Model(name="x", config=source.model.config, weights=str(folder))).eval()
    assert torch.equal(ours.tokenize(TEXTS), tokens)
    assert (ours.mean, repr(ours._transform)) == ((0.5,) * 3, repr(transform))
    with torch.no_grad():
        expected = nn.functional.normalize(theirs.eval().encode_text(tokens), dim=-1)
        assert torch.allclose(ours.encode_text(tokens), expected, atol=1e-6)
    spec = tmp_path / "x.toml"
    taught = (
        'teacher = { kind = "open_clip", model = "m", weights = "model", config = "model/open_clip_config.json" }\n'
    )
    spec.write_text('model = { config = "model/open_clip_config.json", weights = "model" }\n' + taught)
    experiment = load_experiment(spec)
    assert isinstance(experiment.teacher, OpenClipTeacher)
    assert experiment.model.config == experiment.teacher.config == source.model.config
    assert build_towers(experiment.model, device="meta").learned == (1.0, 0.0)  # it has both; meta knows no values


def test_a_tokenizers_folder_is_known_by_its_content(tmp_path: Path, words: Path) -> None:
    (tmp_path / "specs" / "mine").mkdir(parents=True)
    for file in words.iterdir():
        (tmp_path / "specs" / "mine" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "specs" / "m.json").write_text(json.dumps({**CONFIG, "text_cfg": {"hf_tokenizer_name": "mine"}}))
    spec = tmp_path / "specs" / "x.toml"
    ids = []
    for stated in ('"m.json"', '{ embed_dim = 24, vision_cfg = {}, text_cfg = { hf_tokenizer_name = "./mine" } }'):
        spec.write_text(f"model.config = {stated}\n")
        experiment = load_experiment(spec)
        assert (experiment.model.config or {})["text_cfg"]["hf_tokenizer_name"] == str(tmp_path / "specs" / "mine")
        ids.append(identify(experiment, fingerprint="f", teacher=None).id)
    moved = Model.model_validate({"config": {**CONFIG, "text_cfg": {"hf_tokenizer_name": str(words)}}})
    same = identify(load_experiment(spec).model_copy(update={"model": moved}), fingerprint="f", teacher=None)
    spec.write_text('model.config = "m.json"\n')
    assert identify(load_experiment(spec), fingerprint="f", teacher=None).id == same.id == ids[0]
    (tmp_path / "specs" / "mine" / "tokenizer.json").write_text("{}")
    assert identify(load_experiment(spec), fingerprint="f", teacher=None).id != ids[0]
    spec.write_text("model.config = { embed_dim = 24, text_cfg = { hf_tokenizer_name = './gone' } }\n")
    with pytest.raises(SpecError, match=r"model.config.text_cfg.hf_tokenizer_name: there is no folder './gone'"):
        load_experiment(spec)


@pytest.mark.parametrize(("bias", "clamp"), [(None, None), (-3.5, 100.0), (-3.5, 10.0)])
def test_temperature_and_bias_are_taken_where_asked_and_said(
    tmp_path: Path, trained: Towers, capsys: pytest.CaptureFixture[str], bias: float | None, clamp: float | None
) -> None:
    state = trained.model.state_dict() | {"logit_scale": torch.tensor(3.0)}
    torch.save(state | ({} if bias is None else {"logit_bias": torch.tensor([bias])}), tmp_path / "x.pt")
    asked = Model(name="m", config=CONFIG, weights=str(tmp_path / "x.pt"), temperature="weights")
    towers = build_towers(asked)
    for spec in (Sigmoid(max_logit_scale=clamp), InfoNCE(max_logit_scale=clamp, logit_scale=5.0)):
        objective = build_objective(spec)
        Assembler(None, None, "", towers, World())._start_at_weights(objective)  # type: ignore[arg-type]
        scale = min(float(torch.tensor(3.0).exp()), clamp or torch.inf)
        assert objective.log_scale.exp().item() == pytest.approx(scale, rel=1e-6)
        said = "".join(capsys.readouterr())
        assert f"logit_scale {scale:.6g}" in said
        assert ("clamped" in said) == (clamp == 10.0)
        if isinstance(spec, Sigmoid):
            assert objective.bias.item() == (-10.0 if bias is None else bias)  # type: ignore[operator]
            assert ("hold no bias" in said, "logit_bias -3.5" in said) == (bias is None, bias is not None)
        else:
            assert ("bias is not used" in said) == (bias is not None)
    plain = Model(name="m", config=CONFIG, weights=str(tmp_path / "x.pt"))
    assert "temperature" not in plain.science()


def test_a_temperature_that_is_not_there_is_refused(tmp_path: Path, trained: Towers) -> None:
    torch.save({k: v for k, v in trained.model.state_dict().items() if k != "logit_scale"}, tmp_path / "x.pt")
    asked = Model(name="m", config=CONFIG, weights=str(tmp_path / "x.pt"), temperature="weights")
    with pytest.raises(ModelError, match=r"x.pt: hold no temperature \(logit_scale\); leave model.temperature"):
        build_towers(asked, device="meta")
    with pytest.raises(ValueError, match="needs weights"):
        Model(temperature="weights")
