"""A close look at one sample: its image decoded in full, its captions read for what goes wrong with captions."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from harness.config.data import Pictures
from harness.data.dataset import pictures
from harness.data.dataset.pictures import BadImageError
from harness.data.hashing import hash64
from harness.data.sources.raw_samples import RawSample

CONTEXT_TOKENS = 77
"""CLIP's context; its tokenizer needs a start, an end and at least one token for each word or mark."""
SMALL_SIDE_PX = 24
LONG_ASPECT = 4.0
_WORD = re.compile(r"\w+|[^\w\s]")
_ODD_TEXT = {
    "replacement characters (an encoding was lost)": re.compile("�"),
    "UTF-8 read as Latin-1": re.compile("[ÃÂ][\u0080-\u00bf]|â€"),
    "HTML": re.compile(r"&(?:[a-z]{2,8}|#\d{1,6});|</?[a-zA-Z][^>]{0,200}>"),
    "control characters": re.compile("[\x00-\x08\x0b-\x1f\x7f]"),
    "a URL": re.compile(r"https?://|www\."),
    "no letter": re.compile(r"[\W\d_]+"),
    "a list": re.compile(r"\[\s*['\"].*\]", re.DOTALL),
    "several lines, like rows of a table": re.compile(r".*\n.*[,\t;|].*", re.DOTALL),
}
_WHOLE = {"no letter", "a list", "several lines, like rows of a table"}
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF"}


class ImageLook(NamedTuple):
    """What an image file is."""

    digest: int
    """64 bits of the hash of the whole file."""
    mode: str
    """Pillow's mode before the conversion to RGB."""
    form: str
    width: int
    height: int
    plain: bool
    """Of a single colour."""


def look_at_image(candidate: RawSample, options: Pictures) -> ImageLook:
    """Decode the image of `candidate` in full.

    Raises:
        BadImageError: it cannot be used; the message is the reason.
    """
    pictures.check(candidate.head, candidate.size, candidate.read, "header", options)
    content = candidate.read(0, candidate.size)
    digest = hash64(content)
    try:
        with Image.open(io.BytesIO(content), formats=pictures.FORMATS) as image:
            mode, form, (width, height) = image.mode, str(image.format), image.size
        pixels = np.asarray(pictures.decode(content, options))
    except (*pictures.BROKEN, BadImageError):
        raise BadImageError("image damaged") from None
    plain = bool((pixels == pixels[0, 0]).all())
    return ImageLook(digest, mode, form, width, height, plain)


def odd_image(look: ImageLook, name: str) -> list[str]:
    """What is odd about an image that can be used; `name` is its file's or member's."""
    stated = _FORMATS.get(name.rpartition(".")[2].lower())
    found = []
    if stated is not None and stated != look.form:
        found.append(f"{look.form} under another extension")
    if look.plain:
        found.append("a single colour")
    if min(look.width, look.height) < SMALL_SIDE_PX:
        found.append(f"shorter side below {SMALL_SIDE_PX} px")
    if max(look.width, look.height) > LONG_ASPECT * min(look.width, look.height):
        found.append(f"sides differ by more than {LONG_ASPECT:g} times")
    return found


def words(text: str) -> int:
    """Words and marks of a caption: at least as many tokens any CLIP tokenizer makes of it."""
    return len(_WORD.findall(text))


def odd_caption(text: str, count: int) -> list[str]:
    """What is odd about a caption of `count` words and marks."""
    found = [
        name
        for name, pattern in _ODD_TEXT.items()
        if (pattern.fullmatch(text) if name in _WHOLE else pattern.search(text))
    ]
    if count > CONTEXT_TOKENS - 2:
        found.append(f"longer than {CONTEXT_TOKENS} tokens: its end is never seen")
    return found
