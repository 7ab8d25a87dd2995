"""A finished run's model as a folder that open_clip, transformers or any reader of safetensors loads."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor

from harness.base.errors import ModelError, StoreError
from harness.config.model import PREPROCESSING, Model
from harness.models import build_towers, load_weights
from harness.models.checkpoints import CONFIG, to_hugging_face
from harness.models.towers import Towers
from harness.runs.folder import RunFolder
from harness.runs.record import Record
from harness.runs.request import read_request

Format = Literal["open_clip", "hf", "safetensors"]
_LOAD = {
    "open_clip": 'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")\n'
    'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")',
    "hf": 'model = transformers.CLIPModel.from_pretrained("FOLDER")\n'
    'processor = transformers.CLIPProcessor.from_pretrained("FOLDER")',
    "safetensors": 'state = safetensors.torch.load_file("FOLDER/model.safetensors")',
}


def export(run: RunFolder, target: Path, to: Format) -> None:
    """Write the model of a finished run to `target`, with the last logged temperature and bias in it.

    Raises:
        StoreError: the run is not finished, or `target` is there already.
        ModelError: the model has no counterpart in the format.
    """
    if not run.record_file.exists() or not run.weights.exists():
        raise StoreError("is not finished", where=str(run.path), fix="finish it with `harness run` first")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError("is there already", where=str(target), fix="name a new folder")
    spec = read_request(run).experiment.model.bare()
    towers = build_towers(spec)
    load_weights(towers.model, run.weights)
    record = run.record()
    config = dict(spec.architecture() or open_clip.get_model_config(spec.name) or {})
    config.pop(PREPROCESSING, None)
    state = {name: value.detach().clone().contiguous() for name, value in towers.model.state_dict().items()}
    if (scale := record.final.get("logit_scale")) is not None:
        state["logit_scale"] = torch.full_like(state["logit_scale"], math.log(scale))
    if (bias := record.final.get("logit_bias")) is not None:
        config["init_logit_bias"] = bias
        state["logit_bias"] = torch.full_like(state["logit_scale"], bias)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        match to:
            case "open_clip":
                preprocess = dict(towers.model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
                _write(folder / CONFIG, {"model_cfg": config, PREPROCESSING: preprocess})
                if isinstance(tokenizer := towers.tokens.tokenizer, HFTokenizer):
                    tokenizer.save_pretrained(folder)
                save_file(state, folder / "open_clip_model.safetensors")
            case "hf":
                _hugging_face(folder, towers, state)
            case "safetensors":
                save_file(state, folder / "model.safetensors")
        (folder / "README.md").write_text(_card(run, record, spec, target, to), encoding="utf-8")
        os.replace(folder, target)


def _hugging_face(folder: Path, towers: Towers, state: dict[str, Tensor]) -> None:
    model, tokenizer = towers.model, SimpleTokenizer()
    if why := _why_not(model, tokenizer):
        fix = "export it with --to open_clip"
        raise ModelError(f"transformers' CLIPModel has no such model: {why}", where=towers.name, fix=fix)
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    assert isinstance(model, CLIP)
    assert isinstance(model.visual, VisionTransformer)
    act = "quick_gelu" if any(isinstance(module, QuickGELU) for module in model.modules()) else "gelu"
    size, context = towers.image_size, int(model.context_length)
    vision: dict[str, Any] = _sizes(model.visual.transformer)
    text: dict[str, Any] = _sizes(model.transformer)
    width = int(state["text_projection"].shape[1])
    common = {"hidden_act": act, "projection_dim": width}
    vision |= common | {"image_size": size, "patch_size": int(model.visual.conv1.kernel_size[0])}
    text |= common | {"max_position_embeddings": context, "vocab_size": int(model.vocab_size)}
    text |= {"bos_token_id": tokenizer.sot_token_id, "eos_token_id": tokenizer.eot_token_id}
    theirs: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    theirs.load_state_dict(to_hugging_face(state), strict=True)
    theirs.save_pretrained(folder)
    start, end = "<|startoftext|>", "<|endoftext|>"  # open_clip calls them otherwise
    named = {tokenizer.sot_token_id: start, tokenizer.eot_token_id: end}
    vocabulary = {named.get(number, token): number for token, number in tokenizer.encoder.items()}
    _write(folder / "vocab.json", vocabulary)
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    _write(
        folder / "tokenizer_config.json", special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": context}
    )
    resized = {"do_resize": True, "size": {"shortest_edge": size}, "resample": 3, "do_center_crop": True}
    cropped = {"crop_size": {"height": size, "width": size}, "do_rescale": True, "do_convert_rgb": True}
    norm = {"do_normalize": True, "image_mean": list(towers.mean), "image_std": list(towers.std)}
    _write(
        folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"} | resized | cropped | norm
    )


def _why_not(model: Any, tokenizer: SimpleTokenizer) -> str | None:
    """Why transformers' CLIPModel cannot hold `model`; None if it can."""
    if not isinstance(model, CLIP) or not isinstance(model.visual, VisionTransformer):
        return "its image tower is not a ViT of CLIP"
    foreign = [name for name, value in model.state_dict().items() if not to_hugging_face({name: value})]
    if foreign:
        return f"it has {', '.join(foreign[:3])}"
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        return "its texts are not read at their end behind a causal mask"
    if model.visual.pool_type != "tok" or model.visual.final_ln_after_pool:
        return "its pictures are not read at the class token"
    if model.vocab_size != len(tokenizer.encoder):
        return f"its vocabulary has {model.vocab_size} tokens, and CLIP's {len(tokenizer.encoder)}"
    return None


def _sizes(transformer: Any) -> dict[str, int]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": int(transformer.width),
        "num_hidden_layers": int(transformer.layers),
        "num_attention_heads": int(block.attn.num_heads),
        "intermediate_size": int(block.mlp.c_fc.out_features),
    }


def _card(run: RunFolder, record: Record, spec: Model, target: Path, to: Format) -> str:
    rows = [
        f"| {one.set} | {name} | {metric.value:.4f} | {one.protocol_id} |"
        for one in record.evaluations
        for name, metric in one.metrics.items()
    ]
    learned = {name: record.final[name] for name in ("logit_scale", "logit_bias") if name in record.final}
    lines = [
        "---",
        "tags: [clip]",
        "---",
        f"# {spec.name}, run {run.id}",
        "",
        f"Trained for {record.steps:,} steps on {record.samples_seen:,} images "
        f"(data {record.data.fingerprint[:12]}, {record.data.samples:,} samples).",
        *record.data.census(),
        "",
        ", ".join(f"{name} {value:.6g}" for name, value in learned.items()) + " as last logged."
        if learned
        else "The objective has no temperature: that of open_clip's initialisation is in the weights.",
        "",
        "```python",
        _LOAD[to].replace("FOLDER", target.name),
        "```",
        "",
        "| set | metric | value | protocol |",
        "|---|---|---|---|",
        *rows,
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())) + ".",
    ]
    return "\n".join(lines) + "\n"


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
