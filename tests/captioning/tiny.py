"""Image-to-text models of a few thousand random weights, saved to disk as transformers saves its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import tokenizers
import torch

hf: Any = importlib.import_module("transformers")  # typed in parts only

WORDS = ["a", "red", "blue", "circle", "square", "on", "white", "black", "small", "large"]
SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "<image>"]
VOCABULARY = len(SPECIAL) + len(WORDS)
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 32, "patch_size": 16}  # fmt: skip
_TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 64, **IDS}  # fmt: skip


def tokenizer() -> Any:
    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]",
        model_max_length=64, additional_special_tokens=["<image>"],
    )  # fmt: skip


def save(kind: str, folder: Path) -> Path:
    """A model of the class `kind` in `folder`."""
    torch.manual_seed(0)
    {"blip": _blip, "blip-2": _blip2, "git": _git, "vision-encoder-decoder": _encoder_decoder}[kind](folder)
    return folder


def _blip(folder: Path) -> None:
    text = hf.BlipTextConfig(**_TEXT, encoder_hidden_size=16, sep_token_id=2, is_decoder=True)
    config = hf.BlipConfig(text_config=text.to_dict(), vision_config=_VISION, projection_dim=16)
    hf.BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    hf.BlipProcessor(hf.BlipImageProcessor(size=size), tokenizer()).save_pretrained(folder)


def _blip2(folder: Path) -> None:
    qformer = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "intermediate_size": 32, "encoder_hidden_size": 16, "cross_attention_frequency": 1}  # fmt: skip
    text = hf.OPTConfig(vocab_size=VOCABULARY, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
                        max_position_embeddings=64, word_embed_proj_dim=16, **IDS)  # fmt: skip
    config = hf.Blip2Config(vision_config=_VISION, qformer_config=qformer, text_config=text.to_dict(),
                            num_query_tokens=4, image_token_index=4)  # fmt: skip
    hf.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = hf.Blip2Processor(hf.BlipImageProcessor(size=size), tokenizer(), num_query_tokens=4)
    processor.save_pretrained(folder)


def _git(folder: Path) -> None:
    config = hf.GitConfig(vision_config=_VISION, **_TEXT)
    hf.GitForCausalLM(config).save_pretrained(folder)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    hf.GitProcessor(images, tokenizer()).save_pretrained(folder)


def _encoder_decoder(folder: Path) -> None:
    encoder = hf.ViTConfig(**_VISION)
    decoder = hf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, **IDS)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    hf.VisionEncoderDecoderModel(config).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
