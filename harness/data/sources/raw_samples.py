"""What a reader of shards or tables hands to the index: one possible sample, or why it is none."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from harness.config.sources import Split

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MISSING = frozenset({"nan", "none", "null", "<na>"})
"""What pandas and others write for a missing text."""
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None|nan)"""
_LISTED = re.compile(
    rf"\[\s*{_QUOTED}(?:(?:\s*,\s*|\s+){_QUOTED})*\s*,?\s*\]|\(\s*{_QUOTED}\s*,(?:\s*{_QUOTED}\s*,?)*\s*\)", re.DOTALL
)
_ITEM = re.compile(_QUOTED, re.DOTALL)
_LIKE_A_LIST = re.compile(r"\[\s*['\"].*['\"]\s*\]", re.DOTALL)


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


class Skipped(NamedTuple):
    """A file or row that is no part of a sample."""

    reason: str
    """What it is counted under."""


class Note(NamedTuple):
    """Something guessed or converted while reading."""

    text: str
    """A sentence."""
    times: int = 0
    """If not 0, it stands before the sentence, summed over all notes of one text."""


class RawSample(NamedTuple):
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
    scope: str = ""
    """Within what the key is unique: the shard, or all of the data."""
    faults: Mapping[str, str] = MappingProxyType({})
    """Why a source that the sample has no caption of could not be read."""


Candidate = RawSample | Rejected | Skipped | Note
"""What a reader yields."""


def shard_key(location: str, key: str) -> str:
    """The name of a sample whose key is unique within its shard only."""
    return f"{location.removesuffix('.tar')}/{key}"


def captions_in(value: Any) -> tuple[str, ...]:
    """The captions in a JSON or Parquet value: a text, or a list of texts; blanks, `nan`, `None` and `null` are left
    out.

    Raises:
        RejectedError: the value is something else.
    """
    match value:
        case str() if value.isascii():
            text = value.strip()
            return (text,) if text and text.lower() not in _MISSING else ()
        case str():
            texts = [value]
        case list() if all(isinstance(text, str) or _is_nothing(text) for text in value):
            texts = [text for text in value if isinstance(text, str)]
        case _ if _is_nothing(value):
            return ()
        case _:
            raise RejectedError("caption is neither text nor a list of texts")
    if any(not text.isascii() and not _is_unicode(text) for text in texts):
        raise RejectedError("caption is not Unicode")
    stripped = (text.strip() for text in texts)
    return tuple(text for text in stripped if text and text.lower() not in _MISSING)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


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
    """The captions in a cell of a table: as `captions_in`, or a list in a text, as JSON, Python or NumPy write it.

    Raises:
        RejectedError: the value is something else.
    """
    return captions_in(listed(value) if isinstance(value, str) and is_list(value) else value)


def is_list(text: str) -> bool:
    """Whether a text looks like a list of texts."""
    if "[" not in text and "(" not in text:
        return False
    stripped = text.strip()
    return stripped[:1] in ("[", "(") and (
        _LIKE_A_LIST.fullmatch(stripped) is not None
        or _LISTED.fullmatch(stripped) is not None
        or isinstance(_json(stripped), list)
    )


def listed(text: str) -> list[Any]:
    """The items of a text that `is_list`.

    Raises:
        RejectedError: they cannot be told apart.
    """
    stripped = text.strip()
    if isinstance(found := _json(stripped), list):
        return found
    if _LISTED.fullmatch(stripped) is None:
        raise RejectedError("list of captions unreadable")
    try:
        return [ast.literal_eval(item) if item != "nan" else None for item in _ITEM.findall(stripped)]
    except (ValueError, SyntaxError):
        raise RejectedError("list of captions unreadable") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def one_caption(texts: tuple[str, ...]) -> str:
    """The first of the raw captions.

    Raises:
        RejectedError: there is none.
    """
    if not texts:
        raise RejectedError("no raw caption")
    return texts[0]
