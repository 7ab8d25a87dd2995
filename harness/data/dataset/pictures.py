"""Images as files: cheap checks before training, and decoding."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError

from harness.config.data import Verify

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485
"""Pillow's limit against decompression bombs."""
MAX_BYTES = 1 << 28
"""No image file of a training set is longer; reading one that claims to be would fill the memory."""
_TAIL = 64
BROKEN = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason under which it is counted."""


def decode(content: bytes) -> Image.Image:
    """The image in the file `content`, as RGB.

    Raises:
        BadImageError: the file is damaged or of an unknown format.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.convert("RGB")
    except BROKEN as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def check(head: bytes, size: int, read: Callable[[int, int], bytes], verify: Verify) -> tuple[int, int, bytes]:
    """Width, height and a digest of an image file of `size` bytes that begins with `head`.

    `read(start, stop)` gives more of the file. With `verify="header"` an image is decoded only if its end is not where
    its format puts it. The digest is over head, tail and size.

    Raises:
        BadImageError: the image cannot be used.
    """
    if size == 0:
        raise BadImageError("image is empty")
    if size > MAX_BYTES:
        raise BadImageError("image file too long")
    try:
        tail = head[-_TAIL:] if size <= len(head) else read(size - _TAIL, size)
        width, height = _dimensions(head, size, read)
        if width * height > MAX_PIXELS:
            raise BadImageError("image too large")
        if verify == "decode" or not _complete(head, tail, size):
            _decodes(read(0, size))
    except OSError:
        raise BadImageError("image unreadable") from None
    return width, height, hashlib.sha256(b"%d:" % size + head + tail).digest()[:16]


def _dimensions(head: bytes, size: int, read: Callable[[int, int], bytes]) -> tuple[int, int]:
    try:
        return _opened_size(head)
    except BROKEN:
        pass
    try:
        return _opened_size(read(0, size))
    except Image.DecompressionBombError:
        raise BadImageError("image too large") from None
    except BROKEN:
        raise BadImageError("image unreadable") from None


def _opened_size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.size


def _complete(head: bytes, tail: bytes, size: int) -> bool:
    """Whether the file ends as its format says."""
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"\x89PNG"):
        return b"IEND" in tail
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return False


def _decodes(content: bytes) -> None:
    try:
        decode(content)
    except BadImageError:
        raise BadImageError("image damaged") from None
