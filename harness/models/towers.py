"""The image tower and text tower of an open_clip model, built from a spec. They encode to unit vectors."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from harness.base.errors import ModelError, NotHereError
from harness.config.explain import nearest
from harness.config.model import DECODER_MODELS, PREPROCESSING, TOKENIZER, Model, shipped_names, tokenizer_of
from harness.models.checkpoints import Learned, check_activation, check_preprocessing, fit, learned, read_state
from harness.models.crop import resized_first
from harness.models.decoder import CaptionDecoder, initialise_decoder, why_no_decoder
from harness.models.dense import image_tokens, text_tokens, why_no_tokens, why_no_words, word_losses
from harness.models.tokens import TokenCache, cut_by_context
from harness.models.transfer import sent

Device = Literal["cpu", "meta"]


class Towers(nn.Module):
    """The two towers of an open_clip model. Its temperature is not used, because the objective owns one.

    `encode_image`: [N, 3, H, W] float pixels (see `normalise`) -> [N, d] unit rows, float32.
    `encode_text`: [M, L] token ids, on any device -> [M, d] unit rows, float32.

    A model in float64 gives float64 features.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name
        # The temperature belongs to the objective; a parameter without gradient would only confuse the optimiser.
        for parameter in ("logit_scale", "logit_bias"):
            if isinstance(owned := getattr(model, parameter, None), nn.Parameter):
                owned.requires_grad_(False)
        self.tokens = TokenCache(tokenizer)
        if isinstance(model, CoCa):
            model.text_decoder.requires_grad_(False)  # it is trained by losses that need it: see require_decoder
        self.trims = can_trim(model)
        preprocess = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
        size = preprocess["size"]
        self.image_size: int = size if isinstance(size, int) else int(size[0])
        self.mean: tuple[float, ...] = tuple(preprocess["mean"])
        self.std: tuple[float, ...] = tuple(preprocess["std"])
        self._transform = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
        self.learned = Learned(None, None)
        """Temperature and bias of the weights that it started from."""

    def train(self, mode: bool = True) -> Towers:
        """As in nn.Module, except that batch norms of a locked tower keep their statistics."""
        super().train(mode)
        for norm in self.norms:
            norm.train(mode and moves(norm))
        return self

    @property
    def norms(self) -> list[_BatchNorm]:
        """All batch norms."""
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def image_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the image tower."""
        return [(name, one) for name, one in self.named_parameters() if name.startswith("model.visual.")]

    @property
    def text_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the text tower."""
        return [(name, one) for name, one in self.named_parameters() if not name.startswith("model.visual.")]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert pixels [N, 3, H, W] uint8 to the image tower's input: float32, minus `mean`, divided by `std`."""
        mean, std = (sent(torch.tensor(each).view(1, 3, 1, 1), pixels.device) for each in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    @property
    def transform_name(self) -> str:
        """The evaluation transform in words."""
        return " ".join(repr(self._transform).split())

    def preprocess(self, image: Image.Image) -> Tensor:
        """The evaluation transform of open_clip: [3, H, W]."""
        transformed: Tensor = self._transform(image)
        return transformed

    def resize_first(self, resize: int) -> None:
        """Resize images to `resize` before the centre crop, instead of to the size of the crop.

        Raises:
            ModelError: the crop is larger.
        """
        self._transform = resized_first(self.model.visual.preprocess_cfg, resize)  # type: ignore[union-attr, arg-type]

    def tokenize(self, texts: list[str], *, keep: bool = True) -> Tensor:
        """Token ids, [M, context_length]; without `keep`, of texts that do not recur."""
        return self.tokens(texts, keep=keep)

    def cuts(self, texts: list[str]) -> list[bool]:
        """Whether each text is longer than the context, so that its end is left out."""
        return cut_by_context(self.tokens.tokenizer, texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit image features, [N, d]."""
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return F.normalize(_full(self.model.encode_image(images)), dim=-1)  # type: ignore[operator]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit text features, [M, d]. Equal texts are encoded once.

        Behind a causal mask the end-of-text position sees nothing that follows it, so texts are encoded in groups of
        like length with the padding cut off; the features stay the same, as does their gradient.
        """
        device = self.device
        if not self.trims:
            return F.normalize(_full(self.model.encode_text(sent(tokens, device))), dim=-1)  # type: ignore[operator]
        distinct, row = torch.unique(tokens, dim=0, return_inverse=True)
        groups = length_groups(distinct.argmax(dim=1) + 1, tokens.shape[1])
        encoded = torch.cat([_trimmed(self.model, sent(distinct[group, :length], device)) for length, group in groups])
        place = torch.empty(len(distinct), dtype=torch.long, device=tokens.device)
        place[torch.cat([group for _, group in groups])] = torch.arange(len(distinct), device=tokens.device)
        return F.normalize(_full(encoded), dim=-1)[sent(place[row], device)]

    def encode_image_tokens(self, images: Tensor) -> Tensor:
        """Unit features of images and of their p patches, [N, 1 + p, d]; the first is that of `encode_image`."""
        images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return F.normalize(_full(image_tokens(self.model.visual, images)), dim=-1)

    def encode_text_tokens(self, tokens: Tensor) -> Tensor:
        """Unit features of texts and of their tokens, [M, 1 + L, d]; the first is that of `encode_text`.

        Features of padding (`dense.token_mask`) are zero or without meaning.
        """
        if not self.trims:
            return self._unit_tokens(tokens)
        groups = length_groups(tokens.argmax(dim=1) + 1, tokens.shape[1])
        parts = (self._unit_tokens(tokens[group, :length]) for length, group in groups)
        encoded = [F.pad(part, (0, 0, 0, 1 + tokens.shape[1] - part.shape[1])) for part in parts]
        return torch.cat(encoded)[sent(torch.cat([group for _, group in groups]).argsort(), self.device)]

    def require_decoder(self) -> CaptionDecoder:
        """The captioning decoder, which is trained from now on.

        Raises:
            ModelError: there is none.
        """
        if why := why_no_decoder(self.model):
            what = f"{self.name} has no decoder for the captioning loss: {why}"
            raise ModelError(what, where="model.name", fix=f"take {DECODER_MODELS}")
        assert isinstance(self.model, CoCa)
        self.model.text_decoder.requires_grad_(True)
        return CaptionDecoder(self.model)

    def _unit_tokens(self, tokens: Tensor) -> Tensor:
        assert isinstance(self.model, CLIP)
        return F.normalize(_full(text_tokens(self.model, sent(tokens, self.device))), dim=-1)

    def require_tokens(self, user: str = "a loss on tokens", instead: str = "another loss") -> None:
        """Check that the towers give token features to `user`; `instead` is what the error offers beside other towers.

        Raises:
            ModelError: they don't.
        """
        if why := why_no_tokens(self.model):
            fix = f"use one of open_clip's own ViTs, such as ViT-B-16, or {instead}"
            raise ModelError(f"{self.name} gives no token features to {user}: {why}", where="model", fix=fix)

    def word_losses(self, masked: Tensor, wanted: Tensor) -> Tensor:
        """What the masked tokens of each caption cost, and their number: `dense.word_losses`. [M, L] -> [M, 2]."""
        return word_losses(self.model, masked, wanted)

    def require_words(self) -> None:
        """Check that the text tower can predict masked tokens.

        Raises:
            ModelError: it can't.
        """
        if why := why_no_words(self.model):
            fix = "use one of open_clip's CLIP models, such as ViT-B-16 or RN50, or another loss"
            raise ModelError(f"{self.name} cannot predict masked tokens: {why}", where="model", fix=fix)


def moves(norm: _BatchNorm) -> bool:
    """Whether a batch norm is trained, so that its running statistics change."""
    return all(parameter.requires_grad for parameter in norm.parameters())


def can_trim(model: nn.Module) -> bool:
    """Whether removing padding leaves features unchanged: no token attends to later tokens, and the feature is read at
    the end-of-text token, which has the largest id.
    """
    return isinstance(model, CLIP) and model.text_pool_type == "argmax" and model.attn_mask is not None


def _full(features: Tensor) -> Tensor:
    """Features in float32, or in float64 if they already are."""
    return features if features.dtype == torch.float64 else features.float()


def length_groups(lengths: Tensor, context: int) -> list[tuple[int, Tensor]]:
    """Texts grouped by length [M] in tokens: pairs of the tokens to encode and the texts, at most eight groups.

    Without groups, one long text would undo the trimming of its whole batch.
    """
    width = max(context // 8, 1)
    bucket = (lengths + width - 1) // width
    numbers: list[int] = sorted(set(bucket.tolist()))
    return [(min(number * width, context), torch.nonzero(bucket == number).squeeze(1)) for number in numbers]


def _trimmed(model: Any, tokens: Tensor) -> Tensor:
    """`CLIP.encode_text` of open_clip 3.3 for tokens shorter than the context. [M, L] -> [M, d]."""
    length = tokens.shape[1]
    cast = model.transformer.get_cast_dtype()
    embedded = model.token_embedding(tokens).to(cast) + model.positional_embedding[:length].to(cast)
    hidden = model.transformer(embedded, attn_mask=model.attn_mask[:length, :length])
    ends = model.ln_final(hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)])
    if isinstance(model.text_projection, nn.Linear):
        projected: Tensor = model.text_projection(ends)
        return projected
    features: Tensor = ends if model.text_projection is None else ends @ model.text_projection
    return features


def build_towers(spec: Model, *, seed: int = 0, device: Device = "cpu") -> Towers:
    """The model of `spec`, initialised from its weights, or at random by `seed` alone.

    Args:
        device: `meta` takes no memory: of weights, only names and shapes are read, and nothing is downloaded.

    Raises:
        ModelError: open_clip has no such model, its tokenizer is not on this machine, or the weights are missing or do
            not fit.
    """
    config = spec.architecture()
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        model, tokenizer = _from_config(config, device) if config else _by_name(spec, device)
    from_file = spec.weights and (config or Path(spec.weights).exists())
    if from_file or not spec.weights:
        initialise_decoder(model, seed)
    # Convolutions run faster on channels-last memory, on CPUs and GPUs; other layers are unaffected.
    towers = Towers(model.to(memory_format=torch.channels_last), tokenizer, spec.name)
    if spec.weights and from_file:
        towers.learned = load_weights(model, Path(spec.weights), resize=config is None)
    elif spec.weights:
        towers.learned = learned(model.state_dict())
    if spec.temperature == "weights" and towers.learned.scale is None:
        what, fix = "hold no temperature (logit_scale)", 'leave model.temperature at "loss"'
        raise ModelError(what, where=f"model.weights: {spec.weights}", fix=fix)
    return towers


def embedding_width(spec: Model) -> int:
    """The number d of dimensions of the towers' features, by the model's configuration.

    Raises:
        ModelError: there is no such model.
    """
    config = spec.architecture() or open_clip.get_model_config(spec.name)
    if config is None or "embed_dim" not in config:
        raise ModelError(f"the configuration of {spec.name} states no embed_dim", where="model", fix="state it")
    return int(config["embed_dim"])


def load_weights(model: nn.Module, path: Path, *, resize: bool = False) -> Learned:
    """Load a checkpoint or model folder (see `checkpoints`) into `model`. Runs no code from it.

    Args:
        resize: interpolate positional embeddings of another length, as open_clip does.

    Returns:
        The temperature and bias in it.

    Raises:
        ModelError: it holds no weights, or not those of this model; what does not fit is listed by name.
    """
    state = read_state(path, device="meta" if next(model.parameters()).is_meta else "cpu")
    check_preprocessing(path, model.visual.preprocess_cfg)  # type: ignore[arg-type, union-attr]
    check_activation(path, is_quick=any(isinstance(module, QuickGELU) for module in model.modules()))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)  # open_clip's names of before its text towers were modules
    if resize:
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    fit(model, state, path)
    return learned(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences open_clip's warning that random weights are random. Weights that fail to load are errors here."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _by_name(spec: Model, device: Device) -> tuple[nn.Module, Any]:
    if spec.name not in open_clip.list_models():
        known = [*open_clip.list_models(), *shipped_names()]
        raise ModelError(f"there is no model {spec.name!r}", where="model.name", fix=nearest(spec.name, known))
    # A checkpoint is loaded later, by code that reads more kinds and names what does not fit.
    tag = None if spec.weights and Path(spec.weights).exists() else spec.weights
    if tag is not None:
        _check_tag(spec.name, tag, must_be_here=device == "meta")
    try:
        with warnings.catch_warnings(), torch.device(device):
            warnings.simplefilter("error", UserWarning)  # a QuickGELU mismatch would train a different model
            load = tag is not None and device == "cpu"
            model = open_clip.create_model(
                spec.name,
                pretrained=tag if load else None,
                pretrained_text=False,
                require_pretrained=load,
                device=device,
            )
    except (RuntimeError, UserWarning, OSError) as error:
        if tag is None:
            what, fix = (
                f"open_clip cannot build {spec.name} ({_first_line(error)})",
                "install or download what it needs",
            )
            raise NotHereError(what, where="model.name", fix=fix) from error
        what = f"weights {tag!r} of {spec.name} cannot be loaded ({_first_line(error)})"
        fix = "give a checkpoint's path, or fill open_clip's cache"
        raise NotHereError(what, where="model.weights", fix=fix) from error
    return model, _tokenizer(partial(open_clip.get_tokenizer, spec.name), "model.name")


def _check_tag(name: str, tag: str, *, must_be_here: bool) -> None:
    """Refuse weights that open_clip does not know, or trained with another activation than the model's."""
    weights = open_clip.get_pretrained_cfg(name, tag)
    if not weights:
        known = open_clip.list_pretrained_tags_by_model(name)
        fix = nearest(tag, known) if known else "give the path of a checkpoint"
        raise ModelError(f"there are no weights {tag!r} of {name}", where="model.weights", fix=fix)
    model = open_clip.get_model_config(name) or {}
    if weights.get("quick_gelu", False) != model.get("quick_gelu", False):
        fix = "take the model whose name " + ("lacks -quickgelu" if model.get("quick_gelu") else "ends in -quickgelu")
        what = f"weights {tag!r} of {name} cannot be loaded: they were trained with another activation"
        raise ModelError(what, where="model.weights", fix=fix)
    if must_be_here and not _is_cached(weights):
        what = f"weights {tag!r} of {name} are not in open_clip's cache on this machine"
        raise NotHereError(what, where="model.weights", fix="download them first, or give the path of a checkpoint")


def _is_cached(weights: Any) -> bool:
    if "hf_hub" in weights:
        name, file = os.path.split(str(weights["hf_hub"]))
        file = file or "open_clip_pytorch_model.bin"
        names = (file, f"{os.path.splitext(file)[0]}.safetensors", "open_clip_model.safetensors")
        return any(isinstance(try_to_load_from_cache(name, one), str) for one in names)
    return (Path("~/.cache/clip").expanduser() / os.path.basename(str(weights.get("url", "-")))).is_file()


def _from_config(config: dict[str, Any], device: Device) -> tuple[nn.Module, Any]:
    stated = {"model_cfg": {key: value for key, value in config.items() if key != PREPROCESSING}}
    if PREPROCESSING in config:
        stated[PREPROCESSING] = config[PREPROCESSING]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(stated))
        try:
            with torch.device(device):
                model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, device=device)
        except (AssertionError, RuntimeError, ValueError, TypeError, KeyError, OSError, ZeroDivisionError) as error:
            what = f"open_clip cannot build it ({_first_line(error)})"
            raise ModelError(what, where="model.config", fix="compare with open_clip's model_configs") from error
        if tokenizer_of(config):
            return model, _tokenizer(partial(_hugging_face_tokenizer, config["text_cfg"]), "model.config")
        return model, _tokenizer(partial(open_clip.get_tokenizer, f"local-dir:{folder}"), "model.config")


def _hugging_face_tokenizer(text: dict[str, Any]) -> Any:
    """The tokenizer that `text_cfg` names, a folder or a name in transformers' cache. open_clip looks for that of a
    local configuration beside it only."""
    context = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    options = {"tokenizer_mode": text.get("tokenizer_mode"), **text.get("tokenizer_kwargs", {})}
    return open_clip.tokenizer.HFTokenizer(text[TOKENIZER], context_length=context, **options)


def _tokenizer(make: Callable[[], Any], where: str) -> Any:
    try:
        return make()
    except Exception as error:  # transformers raises anything from OSError to ImportError
        what = f"its tokenizer cannot be loaded on this machine ({_first_line(error)})"
        fix = "put it into transformers' cache, or state its folder as text_cfg.hf_tokenizer_name"
        raise NotHereError(what, where=where, fix=fix) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
