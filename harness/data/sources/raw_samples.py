"""What a reader of shards or tables hands to the index: one possible sample, or why it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.config.sources import Split

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class RejectedError(Exception):
    """A sample that cannot be used; the message is the reason under which it is counted."""


class Rejected(NamedTuple):
    """A sample that cannot be used."""

    reason: str
    """What it is counted under."""
    location: str
    """File of the image, or the shard."""
    key: str | None = None
    """The sample's, where it has one; a damaged shard has none."""


@dataclass(frozen=True)
class RawSample:
    """A sample before its image is checked."""

    key: str
    location: str
    """File of the image, relative to the data's folder: a tar file or the image itself."""
    offset: int
    """Where in `location` the image file begins."""
    size: int
    """Bytes of the image file."""
    head: bytes
    """Its first bytes."""
    read: Callable[[int, int], bytes]
    """The bytes [start, stop) of the image file."""
    raw: str
    pseudo: Mapping[str, tuple[str, ...]]
    """Captions of each source that the sample has; an empty tuple where it has none."""
    name: str = ""
    """Of the image file, where it has one."""


def captions_in(value: Any) -> tuple[str, ...]:
    """The captions in a JSON or Parquet value: a text, or a list of texts; blanks are left out.

    Raises:
        RejectedError: the value is something else.
    """
    match value:
        case None:
            return ()
        case str():
            texts = [value]
        case list() if all(isinstance(text, str) for text in value):
            texts = value
        case _:
            raise RejectedError("caption is neither text nor a list of texts")
    if any(not text.isascii() and not _is_unicode(text) for text in texts):
        raise RejectedError("caption is not Unicode")
    return tuple(text.strip() for text in texts if text.strip())


def split_captions(texts: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """Long texts cut into captions: nowhere, after sentences, or at line ends. Blanks are left out."""
    match split:
        case "none":
            return texts
        case "sentences":
            pieces = [piece for text in texts for piece in _SENTENCE_END.split(text)]
        case "lines":
            pieces = [piece for text in texts for piece in text.splitlines()]
    return tuple(piece.strip() for piece in pieces if piece.strip())


def _is_unicode(text: str) -> bool:
    """Whether `text` is free of lone surrogates, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def captions_in_cell(value: Any) -> tuple[str, ...]:
    """The captions in a cell of a table: as `captions_in`, or a JSON list in a text.

    Raises:
        RejectedError: the value is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except ValueError:
            return captions_in(value)
        if isinstance(parsed, list):
            return captions_in(parsed)
    return captions_in(value)


def one_caption(texts: tuple[str, ...]) -> str:
    """The first of the raw captions.

    Raises:
        RejectedError: there is none.
    """
    if not texts:
        raise RejectedError("no raw caption")
    return texts[0]
