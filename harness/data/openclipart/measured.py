"""What can be measured of a drawing: its attributes, which captions name, and its perceptual hash."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from harness.data.openclipart.render import inked
from harness.data.synthetic.captions import Claims, Values
from harness.data.synthetic.shapes import Pixels

Hashes: TypeAlias = NDArray[np.uint64]
"""One perceptual hash of 63 bits for each drawing."""

_ANCHORS: tuple[tuple[str, tuple[tuple[int, int, int], ...]], ...] = (
    ("black", ((0, 0, 0),)),
    ("grey", ((90, 90, 90), (140, 140, 140), (200, 200, 200))),
    ("white", ((255, 255, 255),)),
    ("red", ((220, 20, 20), (150, 0, 0))),
    ("orange", ((255, 140, 0),)),
    ("yellow", ((255, 225, 30), (255, 250, 150))),
    ("green", ((30, 150, 40), (130, 220, 100), (0, 90, 0))),
    ("blue", ((40, 70, 220), (120, 170, 240), (0, 0, 110))),
    ("purple", ((140, 40, 160), (190, 150, 220))),
    ("pink", ((255, 150, 190),)),
    ("brown", ((130, 75, 30), (190, 140, 90))),
)
"""Colours with a name, and some red, green and blue of each; a pixel has the name of the nearest."""
PALETTES: Values = (("one colour",), ("two colours",), ("many colours", "several colours"))
COVERAGES: Values = (("thin",), ("light",), ("solid", "bold"))
SYMMETRIES: Values = (("symmetric", "mirrored"), ("asymmetric",))
ASPECTS: Values = (("tall", "narrow"), ("wide", "broad"), ("square",))
VOCABULARY: tuple[Values, ...] = (tuple((name,) for name, _ in _ANCHORS), PALETTES, COVERAGES, SYMMETRIES, ASPECTS)
COUNTS = tuple(map(len, VOCABULARY))

_LEAST_SHARE = 0.08
"""A colour counts if it covers this share of what is drawn."""
_COVERAGE = (0.25, 0.6)
"""Shares of the square at which a drawing is no longer thin, and is solid."""
_MIRRORED = 12.0
"""Largest mean difference, in grey levels of 255, between a symmetric drawing and its mirror image."""
_ASPECT = 1.25
"""A drawing is tall (wide) if its height (width) is at least this multiple of the other."""
_MEASURED, _HASHED = 64, 32
"""Sides in pixels."""


def attributes(pixels: Pixels) -> tuple[int, ...]:
    """The value of each of `VOCABULARY`: main colour, palette, coverage, symmetry, aspect; of a picture [H, H, 3].

    It is measured at 64 x 64 of the picture's own pixels, because smoothing would add colours along the edges.
    """
    pixels = np.asarray(Image.fromarray(pixels).resize((_MEASURED, _MEASURED), Image.Resampling.NEAREST))
    mask = inked(pixels)
    shares = _colour_shares(pixels[mask])
    colours = int((shares >= _LEAST_SHARE).sum())
    coverage = int(np.searchsorted(_COVERAGE, mask.mean(), side="right"))
    mirrored = np.abs(pixels.astype(np.int16) - pixels[:, ::-1]).mean() <= _MIRRORED
    high, wide = (int(mask.any(axis=axis).sum()) for axis in (1, 0))
    aspect = 0 if high >= _ASPECT * wide else 1 if wide >= _ASPECT * high else 2
    return int(shares.argmax()), min(max(colours, 1), 3) - 1, coverage, 0 if mirrored else 1, aspect


def _colour_shares(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share [colours] of `pixels` [P, 3] whose nearest named colour is each."""
    anchors = np.array([one for _, some in _ANCHORS for one in some], dtype=np.float32)
    names = np.repeat(np.arange(len(_ANCHORS)), [len(some) for _, some in _ANCHORS])
    distance = ((pixels[:, None, :].astype(np.float32) - anchors) ** 2).sum(axis=2)
    return np.bincount(names[distance.argmin(axis=1)], minlength=len(_ANCHORS)) / max(len(pixels), 1)


def perceptual_hash(pixels: Pixels) -> int:
    """63 bits of a picture [H, H, 3]: pHash, the signs about their median of the lowest 8 x 8 frequencies of the grey
    picture of 32 x 32 pixels, without the constant one (Zauner, "Implementation and benchmarking of perceptual image
    hash functions", 2010)."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((_HASHED, _HASHED), Image.Resampling.BOX))
    low = dctn(grey.astype(np.float64), norm="ortho")[:8, :8].ravel()[1:]
    bits = low > np.median(low)
    return int(sum(1 << place for place, bit in enumerate(bits.tolist()) if bit))


def neighbours(hashes: Hashes, bits: int) -> list[NDArray[np.int64]]:
    """For each drawing, the others whose hash differs in at most `bits` bits."""
    found = []
    for number, one in enumerate(hashes):
        near = np.flatnonzero(np.bitwise_count(hashes ^ one) <= bits)
        found.append(near[near != number])
    return found


def as_claims(rows: list[tuple[int, ...]]) -> Claims:
    """Attributes of all drawings: [S, attributes]."""
    return np.array(rows, dtype=np.int8).reshape(-1, len(VOCABULARY))
