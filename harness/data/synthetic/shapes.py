"""The embedded world `shapes`: drawn pictures of one object each, whose attributes are known.

Only + - * /, comparisons and sqrt are used, which IEEE 754 defines exactly, so that the same spec gives the same pixels
on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.config.data import ShapesData
from harness.data.rng import stream
from harness.data.synthetic.captions import BACKGROUNDS, COLOURS, SHAPES, SIZES, Claims, Values

Plane: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]
"""[S, H, W, 3]"""

RGB = np.array(
    [
        (214, 40, 40),
        (44, 150, 62),
        (42, 82, 210),
        (236, 208, 40),
        (130, 50, 170),
        (240, 132, 30),
        (240, 130, 180),
        (124, 78, 40),
    ],
    dtype=np.float64,
)
_RADII = np.array([0.34, 0.21, 0.13])
_BLOCK = 512


@dataclass(frozen=True)
class Attributes:
    """Names of the values of (shape, colour, background, size) in a world."""

    vocabulary: tuple[Values, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(values) for values in self.vocabulary)


def attributes(data: ShapesData) -> Attributes:
    """The attributes of the world `data`."""
    return Attributes(
        (SHAPES[: data.shapes], COLOURS[: data.colours], BACKGROUNDS[: data.backgrounds], SIZES[: data.sizes])
    )


def draw_attributes(data: ShapesData) -> Claims:
    """True attributes [S, 4] of the pictures to train on: shape and colour skewed, the others even."""
    rng = stream(data.seed, "attributes")
    columns = [
        _skewed(rng, data.train_samples, data.shapes, data.skew),
        _skewed(rng, data.train_samples, data.colours, data.skew),
        rng.integers(0, data.backgrounds, data.train_samples),
        rng.integers(0, data.sizes, data.train_samples),
    ]
    return np.stack(columns, axis=1).astype(np.int8)


def _skewed(rng: np.random.Generator, samples: int, values: int, skew: float) -> NDArray[np.int64]:
    weights = (np.arange(values) + 2.0) ** -skew
    edges = np.cumsum(weights / weights.sum())
    return np.minimum(np.searchsorted(edges, rng.random(samples), side="right"), values - 1)


def evaluation_attributes(data: ShapesData) -> Claims:
    """True attributes [S, 4] of the classification set: classes (shape, colour) in turn, the others even."""
    rng = stream(data.seed, "test attributes")
    classes = np.arange(data.test_samples) % (data.shapes * data.colours)
    backgrounds = rng.integers(0, data.backgrounds, data.test_samples)
    sizes = rng.integers(0, data.sizes, data.test_samples)
    return np.stack([classes // data.colours, classes % data.colours, backgrounds, sizes], axis=1).astype(np.int8)


def all_combinations(data: ShapesData) -> Claims:
    """Each combination of attributes once, shuffled [C, 4]: in the retrieval set one picture alone is right."""
    table = np.array(list(product(*(range(count) for count in attributes(data).counts))), dtype=np.int8)
    return table[stream(data.seed, "retrieval order").permutation(len(table))]


def class_names(data: ShapesData) -> list[str]:
    """Names of the classes, in their order: "red circle" is shape 0 in colour 0."""
    return [f"{colour[0]} {shape[0]}" for shape in SHAPES[: data.shapes] for colour in COLOURS[: data.colours]]


def draw(data: ShapesData, split: str, true: Claims) -> Pixels:
    """Pictures [S, H, W, 3] of objects with the attributes `true` [S, 4]; `split` names the stream of chance."""
    size = data.image_size
    pictures = np.empty((len(true), size, size, 3), dtype=np.uint8)
    rng = stream(data.seed, "pictures", split)
    for start in range(0, len(true), _BLOCK):
        pictures[start : start + _BLOCK] = _draw_block(rng, true[start : start + _BLOCK], size, data.pixel_noise)
    return pictures


def _draw_block(rng: np.random.Generator, true: Claims, size: int, pixel_noise: float) -> Pixels:
    samples = len(true)
    shapes, colours, backgrounds, sizes = (true[:, column].astype(np.int64) for column in range(4))
    radius = _RADII[sizes] * size * rng.uniform(0.92, 1.08, samples)
    centre = radius[:, None] + (size - 2 * radius)[:, None] * rng.random((samples, 2))
    tilt = rng.uniform(-0.2, 0.2, samples)
    paint = RGB[colours] + rng.uniform(-22, 22, (samples, 3))
    cover = _coverage(shapes, radius, centre, tilt, size)[..., None]
    ground = _grounds(rng, backgrounds, size)[..., None]
    # The sum of four bytes is nearly normal, and exact on every machine.
    noise = rng.integers(0, 256, (4, samples, size, size, 3), dtype=np.uint8).sum(axis=0, dtype=np.int64) - 510
    picture = ground + cover * (paint[:, None, None, :] - ground) + noise * (pixel_noise / 147.8)
    pixels: Pixels = np.clip(np.floor(picture + 0.5), 0, 255).astype(np.uint8)
    return pixels


def _coverage(shapes: NDArray[np.int64], radius: Plane, centre: Plane, tilt: Plane, size: int) -> Plane:
    """Share of each pixel [S, H, W] that the object covers, by its signed distance."""
    grid = np.arange(size) + 0.5
    cos = 1 / np.sqrt(1 + tilt * tilt)
    sin = tilt * cos
    dx = ((grid[None, :] - centre[:, :1]) / radius[:, None])[:, None, :]
    dy = ((grid[None, :] - centre[:, 1:]) / radius[:, None])[:, :, None]
    x = cos[:, None, None] * dx + sin[:, None, None] * dy
    y = cos[:, None, None] * dy - sin[:, None, None] * dx
    cover = np.empty((len(shapes), size, size))
    for shape in np.unique(shapes):
        chosen = shapes == shape
        distance = _distance(int(shape), x[chosen], y[chosen]) * radius[chosen, None, None]
        cover[chosen] = np.clip(0.5 - distance, 0, 1)
    return cover


def _distance(shape: int, x: Plane, y: Plane) -> Plane:
    """Signed distance, near the edge, from the outline of a shape in the unit circle; negative inside, y down."""
    ax, ay = np.abs(x), np.abs(y)
    distance: Plane
    match shape:
        case 0:
            distance = np.sqrt(x * x + y * y) - 0.9
        case 1:
            distance = np.maximum(ax, ay) - 0.78
        case 2:
            distance = _triangle(ax, y)
        case 3:
            distance = np.minimum(_triangle(ax, y), _triangle(ax, -y))
        case 4:
            distance = np.minimum(np.maximum(ax - 0.95, ay - 0.3), np.maximum(ay - 0.95, ax - 0.3))
        case 5:
            distance = np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.2
        case 6:
            distance = (ax / 0.6 + ay / 0.98 - 1) * 0.51
        case _:
            distance = np.maximum(np.sqrt(x * x + y * y) - 0.92, 0.8 - np.sqrt((x - 0.5) * (x - 0.5) + y * y))
    return distance


def _triangle(ax: Plane, y: Plane) -> Plane:
    distance: Plane = np.maximum(y, 0.8660254 * ax - 0.5 * y) - 0.5
    return distance


def _grounds(rng: np.random.Generator, backgrounds: NDArray[np.int64], size: int) -> Plane:
    """Grey levels [S, H, W] of the backgrounds, their patterns at a random place."""
    cell = max(size // 8, 2)
    shift = rng.integers(0, 2 * cell, (len(backgrounds), 2))
    across = (np.arange(size)[None, None, :] + shift[:, 0, None, None]) // cell
    down = (np.arange(size)[None, :, None] + shift[:, 1, None, None]) // cell
    full = np.zeros((len(backgrounds), size, size), dtype=np.int64)
    light: Sequence[tuple[NDArray[np.int64], float, float]] = (
        (full, 232, 232),
        (full, 24, 24),
        (down % 2 + full, 96, 190),
        (full, 128, 128),
        ((down + across) % 2, 60, 215),
        ((down % 2) * (across % 2), 200, 70),
    )
    planes = np.empty((len(backgrounds), size, size))
    for value in np.unique(backgrounds):
        chosen = backgrounds == value
        pattern, even, odd = light[value]
        planes[chosen] = np.where(pattern[chosen] == 0, even, odd)
    return planes + rng.uniform(-10, 10, len(backgrounds))[:, None, None]
