"""Checkpoints as people have them, as state dicts with open_clip's names.

Read are: open_clip_train's (with an optimiser beside, from several GPUs, compiled), moving averages, wrappers called
`model` or `state_dict`, safetensors, OpenAI's archives, Hugging Face's CLIP and SigLIP, and folders of these.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.base.boundary import as_sentence
from harness.base.errors import ModelError
from harness.base.files import read_json
from harness.config.model import PREPROCESSING

State = dict[str, Tensor]

CONFIG = "open_clip_config.json"
"""What open_clip calls the architecture in a model folder."""
_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "weights.pt",
)
"""What weights in a folder are called; the first that is there is taken."""
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "state_dict_ema", "model_ema", "ema")
_OWNED = {"logit_scale", "logit_bias"}
"""The objective has these; a checkpoint may lack them or hold them."""
_SHOWN = 10


def weights_file(path: Path) -> Path:
    """The weights at `path`: itself, or the file in a model folder.

    Raises:
        ModelError: there are none.
    """
    if not path.is_dir():
        return path
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    raise ModelError("holds no weights", where=str(path), fix=f"looked for {', '.join(_FILES)}; name a file")


def read_state(path: Path, *, device: Literal["cpu", "meta"] = "cpu") -> State:
    """The weights in a checkpoint or model folder, with open_clip's names. Runs no code from it.

    Args:
        device: `meta` gives names and shapes alone, and reads little more than the header of most files.

    Raises:
        ModelError: it is missing, damaged, or holds no weights.
    """
    file = weights_file(path)
    content: Any = _loaded(file, device)
    while isinstance(content, dict) and not _is_state(content):
        inside = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if inside is None:
            keys = ", ".join(map(str, list(content)[:_SHOWN])) or "nothing"
            fix = f"it holds {keys}; save a state dict, alone or as `state_dict`"
            raise ModelError("holds no weights that can be found", where=str(file), fix=fix)
        content = inside
    if not isinstance(content, dict):
        raise ModelError("holds no state dict", where=str(file), fix="save model.state_dict()")
    return from_hugging_face(_plain({str(name): value.to(device) for name, value in content.items()}), file)


class Learned(NamedTuple):
    """The temperature and bias in a checkpoint, as the factor t and the bias b of t * cosine + b; None: not in it."""

    scale: float | None
    bias: float | None


def learned(state: Mapping[str, Tensor]) -> Learned:
    """The temperature and bias in `state`; 1 and 0 in its place on the device `meta`, which has no values."""
    scale, bias = state.get("logit_scale"), state.get("logit_bias")
    if any(one is not None and (one.is_meta or one.numel() != 1) for one in (scale, bias)):
        return Learned(None if scale is None else 1.0, None if bias is None else 0.0)
    return Learned(None if scale is None else scale.exp().item(), None if bias is None else bias.item())


def check_preprocessing(path: Path, own: Mapping[str, Any]) -> None:
    """Refuse a model folder that normalises pictures by another mean or standard deviation than the model's `own`.

    Raises:
        ModelError: it does.
    """
    ours, theirs = path / CONFIG, path / "preprocessor_config.json"
    for file, keys in ((ours, ("mean", "std")), (theirs, ("image_mean", "image_std"))):
        content = read_json(file) if path.is_dir() and file.is_file() else {}
        stated = content.get(PREPROCESSING, content) if isinstance(content, dict) else {}
        for key, mine in zip(keys, (list(own["mean"]), list(own["std"])), strict=True):
            value = stated.get(key) if isinstance(stated, dict) else None
            if isinstance(value, list) and [round(float(one), 4) for one in value] != [round(one, 4) for one in mine]:
                fix = f'take its configuration: model.config = "{file}"'
                if file == theirs:
                    fix = "state mean and std in model.config: preprocess_cfg = { mean = [...], std = [...] }"
                raise ModelError(f"states {key} {value}, and the model has {mine}", where=str(file), fix=fix)


def check_activation(path: Path, *, is_quick: bool) -> None:
    """Refuse a folder of transformers whose activation is another than the model's: weights do not show it.

    Raises:
        ModelError: it is another.
    """
    config = path / "config.json"
    stated = read_json(config) if path.is_dir() and config.is_file() else {}
    vision = stated.get("vision_config", {}) if isinstance(stated, dict) else {}
    if "hidden_act" in vision and (vision["hidden_act"] == "quick_gelu") != is_quick:
        fix = "take the model of open_clip whose name " + ("lacks -quickgelu" if is_quick else "ends in -quickgelu")
        raise ModelError(
            f"has the activation {vision['hidden_act']}, and the model another", where=str(config), fix=fix
        )


def fit(model: nn.Module, state: State, file: Path) -> None:
    """Load `state` into `model`. Every name and shape must match, but for temperature and bias.

    Raises:
        ModelError: something does not fit; the message lists the first ten names of each kind.
    """
    own = model.state_dict()
    given = dict(state)
    for name in _OWNED & own.keys():
        value = given.get(name)
        given[name] = (
            own[name] if value is None or value.numel() != own[name].numel() else value.reshape(own[name].shape)
        )
    for name in [
        *_OWNED - own.keys(),
        "text.transformer.embeddings.position_ids",
        "text_model.embeddings.position_ids",
    ]:
        if name not in own:
            given.pop(name, None)
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [
        f"{name} ({_shape(given[name])} for {_shape(own[name])})"
        for name in sorted(own.keys() & given.keys())
        if given[name].shape != own[name].shape
    ]
    wrong = [("missing", missing), ("not of the model", foreign), ("of another shape", shapes)]
    said = "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in wrong if names)
    if said:
        fix = "name the model that it belongs to (model.name, model.config or --model)"
        raise ModelError(f"does not fit the model ({said})", where=str(file), fix=fix)
    model.load_state_dict(given, strict=True)


def _loaded(file: Path, device: str) -> Any:
    if not file.exists():
        raise ModelError("there is no such checkpoint", where=str(file), fix="correct `weights`")
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as stored:
                names = stored.keys()
                if device == "meta":
                    return {name: torch.empty(stored.get_slice(name).get_shape(), device=device) for name in names}
                return {name: stored.get_tensor(name) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives of TorchScript
            return _loaded_by_torch(file, is_mapped=device == "meta" and zipfile.is_zipfile(file))
    except (MemoryError, OSError) as error:
        told = as_sentence(error, str(file), ModelError)
        assert told is not None
        raise told from error
    except Exception as error:  # torch.load raises anything from KeyError to UnpicklingError
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "eights only load failed" in first:  # torch goes on with how to load it without this protection
            first = "it holds Python objects, which could run code"
        what = f"does not fit the model: it cannot be read as weights ({first[:200]})"
        raise ModelError(what, where=str(file), fix="save the state dict alone, or as safetensors") from error


def _loaded_by_torch(file: Path, *, is_mapped: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped)
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        scripted = torch.jit.load(str(file), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        return {k: v for k, v in scripted.items() if k not in ("input_resolution", "context_length", "vocab_size")}


def _is_state(content: dict[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _plain(state: State) -> State:
    """`state` without what DistributedDataParallel and torch.compile put before names."""
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


_HF_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")
_HF_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_HF_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
_HF_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_TOWERS = {"text": "transformer", "vision": "visual.transformer"}


class _Blocks(NamedTuple):
    """open_clip's names of the layers of one of transformers' towers."""

    base: str
    parts: dict[str, str]
    joined: str
    """Of query, key and value, one after another."""


_CLIP_BLOCKS = {name: _Blocks(f"{base}.resblocks", _HF_PARTS, "attn.in_proj_") for name, base in _TOWERS.items()}
_TIMM_PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "attn.proj",
}
_SIGLIP_BLOCKS = {
    "text": _Blocks("text.transformer.resblocks", _HF_PARTS, "attn.in_proj_"),
    "vision": _Blocks("visual.trunk.blocks", _TIMM_PARTS, "attn.qkv."),
}
_SIGLIP_NAMES = {  # of modules, or of parameters that are no module's weight or bias
    "text_model.embeddings.token_embedding": "text.token_embedding",
    "text_model.final_layer_norm": "text.ln_final",
    "text_model.head": "text.text_projection",
    "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
    "vision_model.post_layernorm": "visual.trunk.norm",
    "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
    "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
    "vision_model.head.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
    "vision_model.head.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
}
_HEAD = "vision_model.head.attention.in_proj_"


def from_hugging_face(state: State, file: Path) -> State:
    """`state` with open_clip's names, if it has those of transformers' CLIPModel or SiglipModel; else as it is.

    Raises:
        ModelError: it is of another model of transformers.
    """
    patches = state.get("vision_model.embeddings.patch_embedding.weight")
    if patches is None:
        return state
    if "visual_projection.weight" in state:
        return _from_clip(state)
    if "vision_model.head.probe" in state and patches.ndim == 4:
        return _from_siglip(state)
    fix = "take open_clip's weights of this model; of transformers' models, CLIP and SigLIP are read"
    raise ModelError("is of a model of transformers that is not CLIP or SigLIP", where=str(file), fix=fix)


def _from_clip(state: State) -> State:
    found, others = _blocks(state, _CLIP_BLOCKS)
    for name, value in others.items():
        if name in _HF_PROJECTIONS:
            found[_HF_PROJECTIONS[name]] = value.T.contiguous()
        else:
            found[_HF_NAMES.get(name, name)] = value
    return found


def _from_siglip(state: State) -> State:
    found, others = _blocks(state, _SIGLIP_BLOCKS)
    for name, value in others.items():
        module, _, kind = name.rpartition(".")
        if name.startswith(_HEAD):
            query, rest = value.tensor_split([len(value) // 3])
            kind = name.removeprefix(_HEAD)
            found[f"visual.trunk.attn_pool.q.{kind}"] = query.clone()
            found[f"visual.trunk.attn_pool.kv.{kind}"] = rest.clone()
        elif name == "vision_model.head.probe":
            found["visual.trunk.attn_pool.latent"] = value
        elif name == "vision_model.embeddings.position_embedding.weight":
            found["visual.trunk.pos_embed"] = value.unsqueeze(0)
        elif name == "text_model.embeddings.position_embedding.weight":
            found["text.positional_embedding"] = value
        else:
            found[f"{_SIGLIP_NAMES[module]}.{kind}" if module in _SIGLIP_NAMES else name] = value
    return found


def _blocks(state: State, towers: Mapping[str, _Blocks]) -> tuple[State, State]:
    """The layers of both towers with open_clip's names; and the rest, without positions that are not learned."""
    found, others = State(), State()
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := _HF_LAYER.fullmatch(name):
            tower, layer, rest = match.groups()
            blocks = towers[tower]
            base = f"{blocks.base}.{layer}"
            part, _, kind = rest.rpartition(".")
            if part in blocks.parts:
                found[f"{base}.{blocks.parts[part]}.{kind}"] = value
            else:  # self_attn.{q,k,v}_proj
                joined.setdefault(f"{base}.{blocks.joined}{kind}", {})[part.removeprefix("self_attn.")[0]] = value
        elif not name.endswith("position_ids"):
            others[name] = value
    return found | {name: torch.cat([parts[one] for one in "qkv"]) for name, parts in joined.items()}, others


def to_hugging_face(state: State) -> State:
    """`state` of an open_clip CLIP with ViT, with the names of transformers' CLIPModel; others are left out."""
    names = {theirs: ours for ours, theirs in _HF_NAMES.items()}
    parts = {theirs: ours for ours, theirs in _HF_PARTS.items()}
    projections = {theirs: ours for ours, theirs in _HF_PROJECTIONS.items()}
    towers = {theirs: ours for ours, theirs in _TOWERS.items()}
    found: State = {}
    for name, value in state.items():
        if match := re.fullmatch(r"((?:visual\.)?transformer)\.resblocks\.(\d+)\.(.+)", name):
            tower, layer, rest = match.groups()
            base = f"{towers[tower]}_model.encoder.layers.{layer}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for one, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{base}.self_attn.{one}_proj.{kind}"] = third.clone()
            else:
                part, _, kind = rest.rpartition(".")
                if part in parts:
                    found[f"{base}.{parts[part]}.{kind}"] = value.clone()
        elif name in projections:
            found[projections[name]] = value.T.contiguous()
        elif name in names:
            found[names[name]] = value.clone()
    return found


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
