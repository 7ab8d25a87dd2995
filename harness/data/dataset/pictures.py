"""Images as files: cheap checks before training, and decoding."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from harness.config.data import Pictures, Verify

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485
"""Pillow's limit against decompression bombs."""
MAX_BYTES = 1 << 28
"""No image file of a training set is longer; reading one that claims to be would fill the memory."""
_TAIL = 64
BROKEN = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason under which it is counted."""


class Look(NamedTuple):
    """What the header and the ends of an image file say."""

    width: int
    """Of the image as it is decoded, in pixels."""
    height: int
    digest: bytes
    """Over head, tail and size, and over how the image is decoded where that is not Pillow's way."""
    traits: tuple[str, ...]
    """Keys of TRAITS."""


TRAITS = {
    "bits": "have 16 bits, which are scaled to 8",
    "alpha": "have transparency, which data.pictures.alpha treats",
    "exif": "have an EXIF orientation, which data.pictures.exif treats",
    "cmyk": "are CMYK, which data.pictures.cmyk treats",
}
"""What is not plain RGB about a picture."""
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


def decode(content: bytes, options: Pictures) -> Image.Image:
    """The image in the file `content`, as RGB.

    Raises:
        BadImageError: the file is damaged or of an unknown format, or `options` leaves it out.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _allowed(image, options)
            turned = ImageOps.exif_transpose(image) if options.exif == "apply" else image
            return _flattened(_shallow(turned), options).convert("RGB")
    except BROKEN as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def _allowed(image: Image.Image, options: Pictures) -> None:
    if image.mode == "F":
        raise BadImageError("image of floating-point numbers")
    if image.mode == "CMYK" and options.cmyk == "reject":
        raise BadImageError("image is CMYK")


def _shallow(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel with 8."""
    if image.mode not in _DEEP:
        return image
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImageError("image of 32-bit numbers")
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))


def _flattened(image: Image.Image, options: Pictures) -> Image.Image:
    """`image` laid over a ground, where `options` says so and it has transparency."""
    if options.alpha == "drop" or not _is_transparent(image):
        return image
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, options.alpha), over)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def check(head: bytes, size: int, read: Callable[[int, int], bytes], verify: Verify, options: Pictures) -> Look:
    """What an image file of `size` bytes that begins with `head` is.

    `read(start, stop)` gives more of the file. With `verify="header"` an image is decoded only if its end is not where
    its format puts it.

    Raises:
        BadImageError: the image cannot be used.
    """
    if size == 0:
        raise BadImageError("image is empty")
    if size > MAX_BYTES:
        raise BadImageError("image file too long")
    try:
        tail = head[-_TAIL:] if size <= len(head) else read(size - _TAIL, size)
        width, height, traits = _seen(head, size, read, options)
        if width * height > MAX_PIXELS:
            raise BadImageError("image too large")
        if verify == "decode" or not _complete(head, tail, size):
            _decodes(read(0, size), options)
    except OSError:
        raise BadImageError("image unreadable") from None
    scaled = b"scaled" if "bits" in traits else b""
    return Look(width, height, hashlib.sha256(b"%d:" % size + head + tail + scaled).digest()[:16], traits)


def _seen(
    head: bytes, size: int, read: Callable[[int, int], bytes], options: Pictures
) -> tuple[int, int, tuple[str, ...]]:
    if plain := _plain(head):
        return *plain, ()
    try:
        return _opened(head, options)
    except BROKEN:
        pass
    try:
        return _opened(read(0, size), options)
    except Image.DecompressionBombError:
        raise BadImageError("image too large") from None
    except BROKEN:
        raise BadImageError("image unreadable") from None


def _plain(head: bytes) -> tuple[int, int] | None:
    """Width and height by the header of an ordinary JPEG or PNG, 8 bits, grey or RGB, without anything that changes how
    it is decoded. None for all else, which Pillow opens; it takes twenty times as long."""
    if head.startswith(b"\xff\xd8\xff"):
        size = _plain_jpeg(head)
    elif head.startswith(_PNG_START) and head[37:41] == b"IDAT":
        size = _plain_png(head)
    else:
        return None
    return size if size is not None and 0 < size[0] * size[1] <= MAX_PIXELS else None


_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_JFIF, _QUANTISATION, _HUFFMAN, _SCAN = 0xE0, 0xDB, 0xC4, 0xDA
_LAYERS = {1: 11, 3: 17}
"""Length of the frame header of a grey picture and of one with three components."""
_FRAMES = tuple(bytes([0xFF, marker, 0, length, 8]) for length in reversed(_LAYERS.values()) for marker in (0xC0, 0xC2))
"""How frame headers of 8 bits begin, baseline and progressive; height and width follow."""


_known: dict[bytes, bytes] = {}
"""Of JPEG headers that are plain: by what stands before width and height, what follows. Files of one writer share them,
and comparing is faster than parsing."""
_MOST_KNOWN = 1000


def _plain_jpeg(head: bytes) -> tuple[int, int] | None:
    for frame in _FRAMES:
        place = head.find(frame) + len(frame)
        if place >= len(frame) and (rest := _known.get(head[:place])) and head.startswith(rest, place + 4):
            return _size(head, place)
    if (found := _parsed_jpeg(head)) is None:
        return None
    place, end = found
    if len(_known) < _MOST_KNOWN:
        _known[head[:place]] = head[place + 4 : end]
    return _size(head, place)


def _size(head: bytes, place: int) -> tuple[int, int]:
    return head[place + 2] << 8 | head[place + 3], head[place] << 8 | head[place + 1]


def _parsed_jpeg(head: bytes) -> tuple[int, int] | None:
    """Where height and width of a plain JPEG stand, and where its header ends."""
    size, at = None, 2
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], head[at + 2] << 8 | head[at + 3]
        begin, at = at + 4, at + 2 + length
        if at > len(head) or length < 2:
            return None
        if marker == _SCAN:
            return None if size is None else (size, at)
        if marker == _QUANTISATION:
            if (length - 2) % 65 or any(head[table] >> 4 for table in range(begin, at, 65)):
                return None
        elif head.startswith(_FRAMES, begin - 4):
            if size or _LAYERS.get(head[begin + 5]) != length:
                return None
            size = begin + 1
        elif marker == _JFIF:
            if length < 16 or head[begin : begin + 5] != b"JFIF\0":
                return None
        elif marker != _HUFFMAN:
            return None
    return None


def _plain_png(head: bytes) -> tuple[int, int] | None:
    """Of a file whose pixels follow its first chunk."""
    depth, colour, _, unknown = head[24:28]
    if depth != 8 or colour not in (0, 2) or unknown or zlib.crc32(head[12:29]) != int.from_bytes(head[29:33]):
        return None
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def _opened(content: bytes, options: Pictures) -> tuple[int, int, tuple[str, ...]]:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _allowed(image, options)
        # Pillow itself turns TIFF files.
        turn = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info and image.format != "TIFF" else 1
        has = {
            "bits": image.mode in _DEEP,
            "alpha": _is_transparent(image),
            "exif": turn != 1,
            "cmyk": image.mode == "CMYK",
        }
        width, height = image.size
        if turn in _SIDEWAYS and options.exif == "apply":
            width, height = height, width
        return width, height, tuple(name for name, there in has.items() if there)


def _complete(head: bytes, tail: bytes, size: int) -> bool:
    """Whether the file ends as its format says."""
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"\x89PNG"):
        return b"IEND" in tail
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return False


def _decodes(content: bytes, options: Pictures) -> None:
    try:
        decode(content, options)
    except BadImageError:
        raise BadImageError("image damaged") from None
