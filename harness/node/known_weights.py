"""What the store knows of the towers of a weights file, read without torch.

By the SHA-256 of the weights file, its model and the versions of the libraries, it keeps what the cache of features and
the protocol need: a digest of the loaded weights, and the name of the image transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness.base.files import file_sha256
from harness.base.log import say
from harness.config.base import plain
from harness.config.model import Model
from harness.runs.identity import digest
from harness.runs.kept import keep, kept

_LIBRARIES = ("torch", "torchvision", "open_clip_torch")
_LENGTH = 64


@dataclass(frozen=True)
class KnownWeights:
    """Towers that need not be built."""

    digest: str
    """Of the loaded weights (`harness.evaluation.cache.weights_digest`)."""
    transform: str
    """The evaluation transform in words."""

    @property
    def data(self) -> dict[str, str]:
        """As the store keeps it."""
        return {"weights": self.digest, "transform": self.transform}


def note_of(model: Model, weights: Path | None, folder: Path) -> Path | None:
    """The file in `folder` for what is known of a model with the weights file `weights`.

    None for weights that are no single file: a folder's configuration is compared with the model when it is loaded.
    """
    if weights is None or not weights.is_file():
        return None
    libraries = [version(name) for name in _LIBRARIES]
    return folder / f"{digest([plain(model, False), file_sha256(weights), libraries], _LENGTH)}.json"


def read_note(note: Path) -> KnownWeights | None:
    """What a note says; None if there is none, or it is damaged."""
    try:
        if (known := kept(note)) is None:
            return None
        return KnownWeights(str(known["weights"]), str(known["transform"]))
    except (KeyError, ValueError):
        say(f"{note} is damaged: the model is built to know it again")
        return None


def write_note(note: Path, known: KnownWeights) -> None:
    """Keep what is known. A store that cannot be written to keeps nothing: the model is built each time."""
    keep(note, known.data)
