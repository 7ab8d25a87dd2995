"""Drawings as pixels: rendered once, laid over white, cropped to what is drawn, and padded to a square."""

from __future__ import annotations

import io
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from PIL import Image

from harness.base.errors import DataError
from harness.data.synthetic.shapes import Pixels

SIDE = 256
"""Longest side in pixels at which a drawing is rendered. Attributes and hashes are measured at this size."""
RENDERER = "0.5.0"
"""Version of resvg-py. Another version may draw other pixels, which would be other data under the same name."""
INKED = 248
"""A pixel is drawn on if one of its channels is darker than this."""
_DPI = 90.0
"""Pixels per inch of SVG files from before 2016, for sizes in points or inches."""
_FEWEST_INKED = 32


def check_renderer() -> None:
    """Refuse to render by anything but the pinned version of resvg-py.

    Raises:
        DataError: it is missing, or another version is installed.
    """
    fix = "pip install 'fff-ablation-harness[openclipart]'"
    try:
        found = version("resvg-py")
    except PackageNotFoundError:
        raise DataError("the package resvg-py, which renders SVG, is missing", where="data.kind", fix=fix) from None
    if found != RENDERER:
        raise DataError(f"resvg-py is {found}, not {RENDERER}", where="data.kind", fix=fix)


def render(content: bytes) -> Pixels | None:
    """The drawing [H, H, 3] on white, H at most SIDE; None if nothing is drawn, or it cannot be rendered.

    Text is not drawn: it would depend on the fonts of the machine.
    """
    import resvg_py

    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=_decoded(content), width=SIDE, height=SIDE, dpi=_DPI, skip_system_fonts=True
        )
    except ValueError:
        return None
    image = Image.open(io.BytesIO(drawn)).convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return _cropped(np.asarray(page.convert("RGB")))


def inked(pixels: Pixels) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Where something is drawn: [H, W]."""
    return np.asarray((pixels < INKED).any(axis=2))


def resized(pixels: Pixels, side: int) -> Pixels:
    """The picture [side, side, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def _cropped(page: Pixels) -> Pixels | None:
    mask = inked(page)
    if mask.sum() < _FEWEST_INKED:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    drawn = page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    high, wide = drawn.shape[:2]
    side = max(high, wide)
    top, left = (side - high) // 2, (side - wide) // 2
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    square[top : top + high, left : left + wide] = drawn
    return square


def _decoded(content: bytes) -> str:
    """The SVG as text, by the encoding that its first line states."""
    stated = content[:200].partition(b'encoding="')[2].partition(b'"')[0].decode("ascii", "ignore")
    try:
        return content.decode(stated or "utf-8", "replace")
    except LookupError:
        return content.decode("utf-8", "replace")
