"""Towers of a weights file that are built when something has to be encoded. Known features need no model.

The store keeps, for the SHA-256 of a weights file, its model and the versions of the libraries, what the cache of
features and the protocol need: a digest of the loaded weights, and the name of the image transform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.base.errors import StoreError
from harness.base.files import file_sha256, read_json, write_json
from harness.base.log import say
from harness.base.sums import make_room
from harness.config.base import plain
from harness.config.model import Model
from harness.evaluation.cache import weights_digest
from harness.runs.identity import digest

if TYPE_CHECKING:
    from PIL import Image

    from harness.models import Towers

_LIBRARIES = ("torch", "torchvision", "open_clip_torch")
_LENGTH = 64


class LazyTowers:
    """What an evaluation needs of towers (`harness.evaluation.towers.EvaluatedTowers`)."""

    def __init__(self, build: Callable[[], Towers], note: Path | None) -> None:
        """`note`: where the store keeps what is known of the towers without building them; None keeps nothing."""
        self._build = build
        known = None if note is None else _read(note)
        if known is None:
            known = {"weights": weights_digest(self._towers.model), "transform": self._towers.transform_name}
            if note is not None:
                _write(note, known)
        self.weights_digest, self.transform_name = known["weights"], known["transform"]

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

    def modules(self) -> Iterator[nn.Module]:
        """Every module, once the towers are built. They are never in training mode."""
        return self._towers.modules() if "_towers" in vars(self) else iter(())


def note_of(model: Model, weights: Path | None, folder: Path) -> Path | None:
    """The file in `folder` for what is known of a model with the weights file `weights`.

    None for weights that are no single file: a folder's configuration is compared with the model when it is loaded.
    """
    if weights is None or not weights.is_file():
        return None
    libraries = [version(name) for name in _LIBRARIES]
    return folder / f"{digest([plain(model, False), file_sha256(weights), libraries], _LENGTH)}.json"


def _read(note: Path) -> dict[str, str] | None:
    if not note.exists():
        return None
    try:
        kept = read_json(note)
        known = {name: str(kept[name]) for name in ("weights", "transform")}
        if kept["digest"] != digest([note.name, known], _LENGTH):
            raise ValueError("differs from its digest")
        return known
    except (StoreError, KeyError, TypeError, ValueError):
        say(f"{note} is damaged: the model is built to know it again")
        return None


def _write(note: Path, known: dict[str, str]) -> None:
    try:
        make_room(note)
        write_json(note, {**known, "digest": digest([note.name, known], _LENGTH)})
    except (StoreError, OSError):
        return  # a store that cannot be written to: the model is built each time
