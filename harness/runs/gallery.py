"""What a run that mines leaves to be looked at: a few images with the captions that mining gave them, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json

Picture = Annotated[str, StringConstraints(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]*={0,2}$")]
"""An image as a data URI; nothing else goes into a page."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MinedCaption(_Part):
    """A caption of another image that mining calls positive."""

    text: str
    key: str
    """The image that it belongs to."""
    picture: Picture
    clauses: tuple[str, ...]
    """The clauses of Eq. 1 that found it."""
    verdict: str = ""
    """`true`, `false` or `says nothing`, where the truth is known."""


class Card(_Part):
    """An image, its own captions, and those mined for it."""

    key: str
    picture: Picture
    own: tuple[str, ...]
    mined: tuple[MinedCaption, ...]
    more: int = 0
    """Mined captions that are not shown."""


class Gallery(_Part):
    """The first batch of a run, as mining sees it."""

    images: int
    """In the batch."""
    changed: int
    """Images for which mining found or dropped a caption."""
    figures: tuple[tuple[str, str], ...] = ()
    """What there is to say of the whole batch, by name."""
    cards: tuple[Card, ...]


def write_gallery(path: Path, gallery: Gallery) -> None:
    """Write `gallery` to the JSON file `path`.

    Raises:
        StoreError: it cannot be written.
    """
    write_json(path, gallery.model_dump(mode="json"))


def read_gallery(path: Path) -> Gallery | None:
    """The gallery in `path`; None where there is none, or none that can be shown."""
    try:
        return Gallery.model_validate(read_json(path)) if path.exists() else None
    except (StoreError, ValidationError):
        return None
