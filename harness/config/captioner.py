"""An image-to-text model and its settings; `harness data caption` reads them and saves them with the captions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.config.base import Spec


class ImageCaptioner(Spec):
    """An image captioner. The same settings on the same images give the same captions."""

    model: str
    """A folder or a name in transformers' cache (`Salesforce/blip2-opt-2.7b`), or a CoCa model of open_clip
    (`coca_ViT-L-14`, or the harness's `tiny-coca`). The harness downloads nothing and runs no code that comes with a
    model."""
    config: dict[str, Any] | None = None
    """For CoCa: your own architecture, or the path of its JSON file, as in `model.config`. `model` is then only a
    label."""
    weights: str | None = None
    """For CoCa: an open_clip tag in its cache, or the path of a checkpoint, such as a finished run's `weights.pt`."""
    prompt: str = ""
    """Text that each caption continues; it is removed from the caption. transformers only."""
    count: int = Field(5, ge=1, le=20)
    """Captions per image; FFF uses 5."""
    method: Literal["beam", "sample"] = "sample"
    """`beam` takes the `count` best of a beam search, which resemble each other. `sample` draws captions at random."""
    beams: int = Field(5, ge=1, le=64)
    """Width of the beam search, at least `count`."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Sampling draws from the smallest set of tokens with this probability."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of sampling."""
    max_tokens: int = Field(40, ge=2, le=512)
    """Longest caption in tokens. A CoCa's captions also end with its context."""
    min_tokens: int = Field(5, ge=1, le=512)
    """Shortest caption in tokens."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model's weights and computations."""
    batch_size: int = Field(16, ge=1)
    """Images per batch. Sampled captions depend on it."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of sampling."""

    @model_validator(mode="after")
    def _consistent(self) -> ImageCaptioner:
        if self.method == "beam" and self.beams < self.count:
            raise ValueError(f"a beam search of width {self.beams} cannot give {self.count} captions; raise beams")
        if self.min_tokens >= self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is not below max_tokens {self.max_tokens}")
        return self

    def irrelevant(self) -> frozenset[str]:
        """The fields of the unused method."""
        unused = {"beams"} if self.method == "sample" else {"top_p", "temperature", "seed"}
        return frozenset(unused)
