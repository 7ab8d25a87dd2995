"""Image-to-text models behind one call: transformers' by class, and CoCa of open_clip.

Nothing is downloaded and no code that comes with a model is run: `local_files_only`, no `trust_remote_code`, weights
from safetensors or through torch's restricted unpickler.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from harness.errors import ModelError
from harness.spec.captioner import ImageCaptioner

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Captioner(Protocol):
    """Something that describes images."""

    def captions(self, images: Sequence[Image.Image], seed: int) -> list[list[str]]:
        """`count` captions of each image [N]; those of one (images, seed) are always the same."""
        ...


def load_captioner(settings: ImageCaptioner, device: torch.device) -> Captioner:
    """The model of `settings` on `device`.

    Raises:
        ModelError: it is not on this machine, is no image-to-text model, or needs code of its own.
    """
    try:
        import open_clip
        import transformers  # noqa: F401
    except ImportError as error:
        fix = "pip install 'fff-ablation-harness[caption]'"
        raise ModelError(f"captioning needs transformers ({error})", where="model", fix=fix) from None
    if settings.model.startswith("coca") and settings.model in open_clip.list_models():
        return CoCaCaptioner(settings, device)
    return TransformersCaptioner(settings, device)


class TransformersCaptioner:
    """BLIP, BLIP-2, InstructBLIP, GIT, Pix2Struct, vision encoder-decoders, and whatever else transformers loads as
    an image-to-text model."""

    def __init__(self, settings: ImageCaptioner, device: torch.device) -> None:
        self._settings, self._device = settings, device
        model, self._processor, self._tokenizer = _from_transformers(settings)
        self._model = model.to(device).eval()

    def captions(self, images: Sequence[Image.Image], seed: int) -> list[list[str]]:
        """As in Captioner."""
        settings = self._settings
        prompts = {"text": [settings.prompt] * len(images), "padding": True} if settings.prompt else {}
        inputs = self._processor(images=list(images), return_tensors="pt", **prompts)
        inputs = {name: self._placed(value) for name, value in inputs.items()}
        with torch.inference_mode(), _seeded(seed, self._device):
            tokens = self._model.generate(**inputs, **self._how())
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return _grouped([self._without_prompt(text) for text in texts], settings.count)

    def _placed(self, value: torch.Tensor) -> torch.Tensor:
        floating = value.is_floating_point()
        return value.to(self._device, _DTYPES[self._settings.precision] if floating else value.dtype)

    def _how(self) -> dict[str, Any]:
        settings = self._settings
        how: dict[str, Any] = {
            "max_new_tokens": settings.max_tokens,
            "min_new_tokens": settings.min_tokens,
            "num_return_sequences": settings.count,
        }
        if settings.method == "beam":
            return how | {"num_beams": settings.beams, "do_sample": False}
        sampling = {"top_p": settings.top_p, "temperature": settings.temperature, "top_k": 0}
        return how | {"num_beams": 1, "do_sample": True} | sampling

    def _without_prompt(self, text: str) -> str:
        text = " ".join(text.split())
        return text.removeprefix(" ".join(self._settings.prompt.split())).strip()


def _from_transformers(settings: ImageCaptioner) -> tuple[Any, Any, Any]:
    """Model, processor of images (and prompts), tokenizer."""
    import transformers

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    name, where = settings.model, f"model {settings.model!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = transformers.AutoConfig.from_pretrained(name, **local)
            known = transformers.AutoModelForImageTextToText._model_mapping
            if config.model_type == "vision-encoder-decoder":
                kind: Any = transformers.VisionEncoderDecoderModel
                processor: Any = transformers.AutoImageProcessor.from_pretrained(name, **local)
                tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **local)
            elif type(config) in known:
                kind = known[type(config)]
                processor = transformers.AutoProcessor.from_pretrained(name, **local)
                tokenizer = processor.tokenizer
            else:
                fix = "name one that transformers lists under image-text-to-text"
                raise ModelError(f"{config.model_type} is no image-to-text model", where=where, fix=fix)
            dtype = _DTYPES[settings.precision]
            model = kind.from_pretrained(name, dtype=dtype, weights_only=True, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        there = "it is incomplete or needs code of its own" if Path(name).is_dir() else "it is not on this machine"
        fix = "give the folder of a model that transformers can load itself"
        raise ModelError(f"cannot be loaded: {there} ({first})", where=where, fix=fix) from error
    return model, processor, tokenizer


class CoCaCaptioner:
    """CoCa of open_clip. Its beam search gives a single caption; several are drawn."""

    def __init__(self, settings: ImageCaptioner, device: torch.device) -> None:
        if settings.method == "beam" and settings.count > 1:
            fix = 'set method = "sample" or count = 1'
            raise ModelError("CoCa's beam search gives one caption an image", where="captioner", fix=fix)
        if settings.prompt:
            raise ModelError("CoCa takes no prompt here", where="captioner.prompt", fix="leave it out")
        from harness.models import build_towers
        from harness.spec.model import Model

        self._settings, self._device = settings, device
        towers = build_towers(Model(name=settings.model, weights=settings.weights))
        self._preprocess = towers.preprocess
        self._model: Any = towers.model.to(device, _DTYPES[settings.precision]).eval()

    def captions(self, images: Sequence[Image.Image], seed: int) -> list[list[str]]:
        """As in Captioner."""
        pixels = torch.stack([self._preprocess(image) for image in images])
        pixels = pixels.to(self._device, _DTYPES[self._settings.precision])
        with torch.inference_mode(), _seeded(seed, self._device):
            drawn = [self._drawn(pixels) for _ in range(self._settings.count)]
        return [list(texts) for texts in zip(*drawn, strict=True)]

    def _drawn(self, pixels: torch.Tensor) -> list[str]:
        from open_clip import decode

        settings = self._settings
        how: dict[str, Any] = {"generation_type": "beam_search", "num_beams": settings.beams, "num_beam_groups": 1}
        if settings.method == "sample":
            how = {"generation_type": "top_p", "top_p": settings.top_p, "temperature": settings.temperature}
        tokens = self._model.generate(pixels, seq_len=settings.max_tokens, min_seq_len=settings.min_tokens, **how)
        texts = (str(decode(row)).partition("<end_of_text>")[0] for row in tokens.cpu())
        return [" ".join(text.replace("<start_of_text>", "").split()) for text in texts]


def _grouped(texts: list[str], count: int) -> list[list[str]]:
    return [texts[start : start + count] for start in range(0, len(texts), count)]


class _seeded:  # noqa: N801
    """Torch's generators seeded inside, and as they were outside."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *raised: Any) -> None:
        self._fork.__exit__(*raised)
