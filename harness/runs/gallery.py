"""The gallery of a run with mining: a few images with the captions that mining assigned to them, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json

Picture = Annotated[str, StringConstraints(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]*={0,2}$")]
"""An image as a data URI. The pattern admits nothing else into a page."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MinedCaption(_Part):
    """A caption of another image that mining found to be a positive."""

    text: str
    key: str
    """The image that the caption belongs to."""
    picture: Picture
    clauses: tuple[str, ...]
    """The clauses of Eq. 1 that found it."""
    verdict: str = ""
    """`true`, `false` or `says nothing` if the truth is known, else empty."""


class Card(_Part):
    """An image, its own captions, and the captions mined for it."""

    key: str
    picture: Picture
    own: tuple[str, ...]
    mined: tuple[MinedCaption, ...]
    more: int = 0
    """Number of mined captions that are not shown."""


class Gallery(_Part):
    """The first batch of a run, with the result of mining."""

    images: int
    """Number of images in the batch."""
    changed: int
    """Number of images for which mining added or removed a caption."""
    figures: tuple[tuple[str, str], ...] = ()
    """Figures about the whole batch, as (name, value)."""
    cards: tuple[Card, ...]


def write_gallery(path: Path, gallery: Gallery) -> None:
    """Write `gallery` to the JSON file `path`.

    Raises:
        StoreError: it cannot be written.
    """
    write_json(path, gallery.model_dump(mode="json"))


def read_gallery(path: Path) -> Gallery | None:
    """Read the gallery in `path`; None if there is none or it is damaged."""
    try:
        return Gallery.model_validate(read_json(path)) if path.exists() else None
    except (StoreError, ValidationError):
        return None
