"""Image-to-text models behind one interface: transformers' by class, and CoCa of open_clip.

Nothing is downloaded and no code that comes with a model is run: `local_files_only`, no `trust_remote_code`, weights
from safetensors or through torch's restricted unpickler.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from harness.base.errors import ModelError
from harness.config.captioner import ImageCaptioner
from harness.config.model import Model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CaptionModel(Protocol):
    """A model that captions images."""

    def captions(self, images: Sequence[Image.Image], seed: int) -> list[list[str]]:
        """`count` captions for each image [N]. The same images and seed always give the same captions."""
        ...


def load_captioner(settings: ImageCaptioner, device: torch.device) -> CaptionModel:
    """The model of `settings` on `device`.

    Raises:
        ModelError: it is not on this machine, is not an image-to-text model, or needs code of its own.
    """
    try:
        import open_clip
        import transformers  # noqa: F401
    except ImportError as error:
        fix = "pip install 'fff-ablation-harness[caption]'"
        raise ModelError(f"captioning needs transformers ({error})", where="model", fix=fix) from None
    named = settings.model.startswith("coca") and settings.model in open_clip.list_models()
    if named or Model(name=settings.model, config=settings.config).may_have_decoder:
        return CoCaCaptioner(settings, device)
    return TransformersCaptioner(settings, device)


class TransformersCaptioner:
    """BLIP, BLIP-2, InstructBLIP, GIT, Pix2Struct, vision encoder-decoders, and every other model that
    transformers loads as image-to-text."""

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
    from transformers.models.auto import modeling_auto

    transformers: Any = importlib.import_module("transformers")  # only partly typed
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    name, where = settings.model, f"model {settings.model!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = transformers.AutoConfig.from_pretrained(name, **local)
            known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
            if config.model_type == "vision-encoder-decoder":
                kind: Any = transformers.VisionEncoderDecoderModel
                processor: Any = transformers.AutoImageProcessor.from_pretrained(name, **local)
                tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **local)
            elif config.model_type in known:
                kind = transformers.AutoModelForImageTextToText
                processor = transformers.AutoProcessor.from_pretrained(name, **local)
                tokenizer = processor.tokenizer
            else:
                fix = "name one that transformers lists under image-text-to-text"
                raise ModelError(f"{config.model_type} is not an image-to-text model", where=where, fix=fix)
            dtype = _DTYPES[settings.precision]
            model = kind.from_pretrained(name, dtype=dtype, weights_only=True, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        is_absent = isinstance(error, OSError) and not Path(name).is_dir()
        there = "it is not on this machine" if is_absent else "it is incomplete or needs its own code"
        fix = "give the folder of a model that transformers can load itself"
        raise ModelError(f"cannot be loaded: {there} ({first})", where=where, fix=fix) from error
    return model, processor, tokenizer


class CoCaCaptioner:
    """CoCa of open_clip, with our own sampling: open_clip's `generate` needs classes removed in transformers 5."""

    def __init__(self, settings: ImageCaptioner, device: torch.device) -> None:
        if settings.method == "beam":
            raise ModelError("CoCa is sampled", where="method", fix='set method = "sample"')
        if settings.prompt:
            raise ModelError("CoCa does not take a prompt", where="prompt", fix="leave it out")
        if settings.weights is None:
            fix = "name a tag of open_clip, or a checkpoint such as a run's weights.pt"
            raise ModelError("CoCa without weights says random words", where="weights", fix=fix)
        from harness.models import build_towers

        self._settings, self._device = settings, device
        towers = build_towers(Model(name=settings.model, config=settings.config, weights=settings.weights))
        self._preprocess = towers.preprocess
        self._model: Any = towers.model.to(device, _DTYPES[settings.precision]).eval()

    def captions(self, images: Sequence[Image.Image], seed: int) -> list[list[str]]:
        """As in Captioner."""
        count = self._settings.count
        pixels = torch.stack([self._preprocess(image) for image in images])
        with torch.inference_mode(), _seeded(seed, self._device):
            _, seen = self._model.visual(pixels.to(self._device, _DTYPES[self._settings.precision]))
            tokens = self._drawn(seen.repeat_interleave(count, dim=0))
        return _grouped([_text(row) for row in tokens.tolist()], count)

    def _drawn(self, seen: torch.Tensor) -> torch.Tensor:
        """Token ids [N, L] for the image embeddings `seen` [N, T, d], token by token until every row has ended."""
        settings = self._settings
        longest = min(settings.max_tokens, self._model.context_length)
        rows = torch.full((len(seen), 1), START, device=self._device)
        while rows.shape[1] <= longest and not (rows == END).any(dim=1).all():
            _, said = self._model.text(rows)
            logits = self._model.text_decoder(seen, said)[:, -1].float() / settings.temperature
            if rows.shape[1] <= settings.min_tokens:
                logits[:, END] = -torch.inf
            rows = torch.cat([rows, nucleus(logits, settings.top_p)], dim=1)
        return rows


START, END = 49406, 49407
"""Token ids of CLIP's tokenizer, which every CoCa of open_clip uses."""


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """One token [N, 1] per row of `logits` [N, V], drawn from the smallest set with probability `top_p` (Holtzman et
    al. 2020)."""
    ordered, token = logits.softmax(dim=1).sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    return token.gather(1, torch.multinomial(kept, 1))


def _text(row: list[int]) -> str:
    from open_clip import decode

    ended = row[1 : row.index(END)] if END in row else row[1:]
    return " ".join(str(decode(torch.tensor(ended))).split())


def _grouped(texts: list[str], count: int) -> list[list[str]]:
    return [texts[start : start + count] for start in range(0, len(texts), count)]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context manager that seeds torch's generators and restores them at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
