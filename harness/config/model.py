"""The model and the training recipe: towers, duration, batches, optimiser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.base.duration import Duration
from harness.config.augment import Augment, NoAugment, SimCLRAugment
from harness.config.base import Spec, plain
from harness.config.batches import Batches, RandomBatches
from harness.config.text_edits import HardNegatives, TextEdits

PREPROCESSING = "preprocess_cfg"
"""The section of a configuration that says how pictures are prepared."""
TOKENIZER = "hf_tokenizer_name"
"""The key of a configuration's text_cfg that names a tokenizer of transformers, or its folder."""
DECODER_MODELS = "coca_ViT-B-32, coca_ViT-L-14 or tiny-coca"
"""Names of models with a captioning decoder, for messages."""
_OF_PACKAGES = ("timm", "hf_", "multimodal_cfg")
"""In a configuration whose model may need timm or transformers."""
_SHIPPED = resources.files("harness") / "models"


def tokenizer_of(config: Mapping[str, Any]) -> str | None:
    """The tokenizer that a configuration names; None if it names none."""
    text = config.get("text_cfg")
    name = text.get(TOKENIZER) if isinstance(text, dict) else None
    return name if isinstance(name, str) and name else None


def with_tokenizer(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same configuration with another tokenizer."""
    return {**config, "text_cfg": {**config["text_cfg"], TOKENIZER: name}}


@lru_cache
def shipped_config(name: str) -> dict[str, Any] | None:
    """The configuration of a model that ships with the harness, or None."""
    file = _SHIPPED / f"{name}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


@lru_cache
def open_clips_config(name: str) -> dict[str, Any] | None:
    """The configuration that open_clip's package has of the model `name`, or None. The package is not imported."""
    package = find_spec("open_clip")
    folders = (
        [] if package is None else [Path(one) / "model_configs" for one in package.submodule_search_locations or ()]
    )
    files = [file for folder in folders for file in folder.glob("*.json") if file.stem == name]
    return dict(json.loads(files[0].read_text(encoding="utf-8"))) if files else None


def shipped_names() -> list[str]:
    """Names of the model configurations that ship with the harness."""
    return sorted(file.name.removesuffix(".json") for file in _SHIPPED.iterdir() if file.name.endswith(".json"))


class Model(Spec):
    """A two-tower model of open_clip, given by name or by your own configuration."""

    name: str = "ViT-B-16"
    """A model name of open_clip (`ViT-B-16`, `RN50`, ...), a configuration that ships with the harness
    (`tiny-resnet`), or any label when `config` is given."""
    config: dict[str, Any] | None = None
    """An open_clip model configuration (embed_dim, vision_cfg, text_cfg; preprocess_cfg if pictures are not normalised
    as OpenAI's are); in TOML also the path of a JSON file, such as open_clip_config.json."""
    weights: str | None = None
    """Start from these weights: an open_clip tag or the path of a checkpoint. Default: random initialisation."""
    temperature: Literal["loss", "weights"] = "loss"
    """Where temperature and bias start: at the values of `loss`, or at those in `weights`. If the weights hold no bias,
    that of `loss` is used; `max_logit_scale` still holds."""

    @field_validator("config")
    @classmethod
    def _is_json(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(config, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"is not JSON data ({error}); give numbers, texts, lists and tables") from None
        return config

    @model_validator(mode="after")
    def _has_a_temperature(self) -> Model:
        if self.temperature == "weights" and self.weights is None:
            raise ValueError('temperature = "weights" needs weights; name a checkpoint, or leave it at "loss"')
        return self

    def architecture(self) -> dict[str, Any] | None:
        """The configuration to build from: the user's or a shipped one. None: open_clip builds the model by name."""
        return self.config or shipped_config(self.name)

    def bare(self) -> Model:
        """The same model without the weights that it starts from."""
        return Model(name=self.name, config=self.config)

    @property
    def may_need_packages(self) -> bool:
        """False if open_clip certainly builds the towers without timm and transformers."""
        if (architecture := self.architecture() or open_clips_config(self.name)) is None:
            return True
        stated = json.dumps(architecture)
        return any(mark in stated for mark in _OF_PACKAGES)

    @property
    def may_give_tokens(self) -> bool:
        """False if the towers certainly give pooled features only. Only building the model shows it for certain."""
        if (architecture := self.architecture()) is None:
            return not self.name.startswith("RN")
        vision = architecture.get("vision_cfg", {})
        return isinstance(vision.get("layers"), int) and "timm_model_name" not in vision

    @property
    def may_have_decoder(self) -> bool:
        """False if the model certainly has no captioning decoder to train. Only building it shows it for certain."""
        if (architecture := self.architecture()) is None:
            return self.name.startswith("coca_") and "roberta" not in self.name
        return "multimodal_cfg" in architecture and not architecture.get("text_cfg", {}).get("hf_model_name")

    def irrelevant(self) -> frozenset[str]:
        """The name, if the model is built from a configuration: it is only a label then."""
        return frozenset({"name"} if self.architecture() else ())

    def science(self, *, defaults: bool = False) -> dict[str, Any]:
        """As in Spec. A shipped configuration is identified by its content, like the user's own."""
        kept = super().science(defaults=defaults)
        return kept | ({"config": plain(architecture, defaults)} if (architecture := self.architecture()) else {})


class Optimiser(Spec):
    """AdamW, with weight decay on matrices only, as in CLIP and open_clip."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    image_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the image tower. Default: `lr`."""
    text_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the text tower, and of a captioning decoder. Default: `lr`."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise learning rate (BEiT's rule): a layer's rate as a share of the layer above; 1: all equal."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(1e-6, gt=0)
    """Constant added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay of parameters with two or more dimensions. Gains, biases and temperatures do not decay."""
    no_decay: tuple[str, ...] = ()
    """Other parameters without weight decay, given by parts of their names (`positional_embedding`,
    `token_embedding`)."""


class Lock(Spec):
    """Towers that are not trained, as in LiT (Zhai et al., CVPR 2022), with open_clip's groups of layers.

    The batch norms of a locked tower keep their statistics.
    """

    image: bool = False
    """Do not train the image tower."""
    image_unlocked_groups: int = Field(0, ge=0)
    """Number of last groups of a locked image tower to train (open_clip's --lock-image-unlocked-groups)."""
    text: bool = False
    """Do not train the text tower."""
    text_unlocked_layers: int = Field(0, ge=0)
    """Number of last layers of a locked text tower to train (open_clip's --lock-text-unlocked-layers)."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Lock:
        if self.image and self.text and not (self.image_unlocked_groups or self.text_unlocked_layers):
            raise ValueError("both towers are locked, so nothing is trained; unlock one, or some of its layers")
        if (self.image_unlocked_groups and not self.image) or (self.text_unlocked_layers and not self.text):
            raise ValueError("layers can be unlocked only in a locked tower; set image or text to true")
        return self


class Train(Spec):
    """The training recipe."""

    duration: Duration = Duration.parse("32 epochs")
    """Length of training: `"32 epochs"`, `"2000 steps"` or `"1e6 samples"` (images). An epoch drops its last partial
    batch."""
    global_batch_size: int = Field(8192, ge=2)
    """Images in one optimiser step, over all devices and accumulation steps. The loss contrasts all of them."""
    virtual_batch_size: int | None = Field(None, ge=1)
    """Images that share batch-norm statistics and dropout masks ("ghost" batches, Hoffer et al. 2017). None: the whole
    global batch. Has no effect on towers without batch norm and dropout. With them, the global batch can be split over
    devices or accumulation steps only in multiples of this."""
    batches: Batches = Field(default_factory=RandomBatches)
    """How images are grouped into batches."""
    augment: Augment = Field(default_factory=NoAugment)
    """Augmentation of the training images."""
    views: Augment = Field(default_factory=SimCLRAugment)
    """Augmentation of the further views of each image. Has no effect on losses that read none."""
    text_views: TextEdits = Field(default_factory=TextEdits)
    """Edits of the further views of each caption. Has no effect on losses that read none."""
    hard_negatives: HardNegatives = Field(default_factory=HardNegatives)
    """Edits that make captions that belong to no image. Has no effect on losses that read none."""
    optimiser: Optimiser = Field(default_factory=Optimiser)
    """The optimiser."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning rate after the warm-up: a cosine decay, a linear decay, or constant."""
    warmup: Duration = Duration.parse("0 steps")
    """Linear warm-up of the learning rate from zero."""
    cooldown: Duration = Duration.parse("0 steps")
    """With the constant schedule: length of a linear decay at the end of training (warm-up-stable-decay)."""
    end_lr: float = Field(0.0, ge=0, le=1)
    """Final learning rate of a decay or cooldown, as a share of the peak learning rate."""
    lock: Lock = Field(default_factory=Lock)
    """Towers that are not trained."""
    grad_clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient over all parameters. None: no clipping."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved in place of the
    last weights. None: no moving average."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Precision of the towers (autocast). Losses and mining always accumulate in float32. float16 uses loss scaling.
    `tf32`: float32 whose products and convolutions a GPU may compute in TF32; on a CPU it equals `float32`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        if self.cooldown.amount and self.schedule != "constant":
            raise ValueError(f'cooldown needs schedule = "constant"; "{self.schedule}" already decays')
        if self.virtual_batch_size and self.global_batch_size % self.virtual_batch_size:
            what = f"virtual_batch_size {self.virtual_batch_size} does not divide global_batch_size"
            raise ValueError(f"{what} {self.global_batch_size}; use a divisor of it")
        return self
