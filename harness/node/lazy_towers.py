"""Towers of a weights file that are built when something has to be encoded. Known features need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.evaluation.cache import weights_digest
from harness.node.known_weights import KnownWeights, read_note, write_note

if TYPE_CHECKING:
    from PIL import Image

    from harness.models import Towers


class LazyTowers:
    """What an evaluation needs of towers (`harness.evaluation.towers.EvaluatedTowers`)."""

    def __init__(self, build: Callable[[], Towers], note: Path | None) -> None:
        """`note`: where the store keeps what is known of the towers without building them; None keeps nothing."""
        self._build = build
        known = None if note is None else read_note(note)
        if known is None:
            known = KnownWeights(weights_digest(self._towers.model), self._towers.transform_name)
            if note is not None:
                write_note(note, known)
        self.weights_digest, self.transform_name = known.digest, known.transform

    @cached_property
    def _towers(self) -> Towers:
        with torch.inference_mode(False):  # features may be asked for within inference mode
            return self._build().eval()

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """From an RGB image to [3, H, W]."""
        return self._towers.preprocess

    @property
    def tokenize(self) -> Callable[[list[str]], Tensor]:
        """From M texts to tokens [M, L]."""
        return self._towers.tokenize

    def cuts(self, texts: list[str], /) -> list[bool]:
        """Whether each text is longer than the context."""
        return self._towers.cuts(texts)

    @property
    def trims(self) -> bool:
        """Whether text features do not depend on padding."""
        return self._towers.trims

    def encode_image(self, images: Tensor, /) -> Tensor:
        """From images [N, 3, H, W] to unit features [N, d]."""
        return self._towers.encode_image(images)

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        """From tokens [M, L] to unit features [M, d]."""
        return self._towers.encode_text(tokens)

    def require_tokens(self, user: str, instead: str, /) -> None:
        """Raises ModelError where the towers give no features of patches and tokens."""
        self._towers.require_tokens(user, instead)

    def encode_image_tokens(self, images: Tensor, /) -> Tensor:
        """From images [N, 3, H, W] to unit features of images and patches [N, 1 + p, d]."""
        return self._towers.encode_image_tokens(images)

    def encode_text_tokens(self, tokens: Tensor, /) -> Tensor:
        """From tokens [M, L] to unit features of texts and tokens [M, 1 + L, d]."""
        return self._towers.encode_text_tokens(tokens)

    def modules(self) -> Iterator[nn.Module]:
        """Every module, once the towers are built. They are never in training mode."""
        return self._towers.modules() if "_towers" in vars(self) else iter(())
