"""The figures of an analysis: distributions by caption source, in the style of the reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from harness.analysis.analyse import Analysis
from harness.analysis.measures import Floats
from harness.reporting.figures.svg import MUTED, RC, series_colour, to_svg

_SIZE = (370 / 72, 250 / 72)
_BINS = 60


@dataclass(frozen=True)
class Drawn:
    """A figure of the page."""

    title: str
    caption: str
    svg: str


def figures(found: Analysis) -> list[Drawn]:
    """Every figure for which there is data."""
    sources = found.sources
    several = {name: one.within for name, one in sources.items() if len(one.within)}
    alignment: dict[str, Floats] = {}
    for name, one in sources.items():
        alignment[f"{name}, one"] = one.single
        if len(one.within):
            alignment[f"{name}, mean of all"] = one.mean
    with mpl.rc_context(RC):
        drawn = [
            _histogram(
                "nearest",
                "Captions and their 100 nearest",
                "Mean similarity of a caption to the 100 captions nearest to it: further right, the captions of the "
                "set resemble each other more (FFF, Figure 2a).",
                {name: one.nearest for name, one in sources.items()},
            ),
            _histogram(
                "alignment",
                "Images and their own captions",
                "Similarity of each image to one caption, and to the mean of all its captions of a source: further "
                "right, captions fit better (FFF, Figures 2b and 3b).",
                alignment,
            ),
            _histogram(
                "within",
                "Captions of one image",
                "Mean similarity among the captions of an image: further left, they say more different things (FFF, "
                "Figure 3a).",
                several,
            ),
            _frequencies(found),
            _ranks(found),
            _histogram(
                "near",
                "Nearest others",
                "Similarity to the nearest other image, and of a text to the nearest other text: near 1 are "
                "near-duplicates.",
                {"images": found.near_images} | {f"{name} texts": one.near for name, one in sources.items()},
            ),
        ]
    return [one for one in drawn if one is not None]


def _histogram(key: str, title: str, caption: str, values: Mapping[str, Floats]) -> Drawn | None:
    there = {name: numbers for name, numbers in values.items() if len(numbers)}
    if not there:
        return None
    figure, axes = _panel("cosine similarity", "share of all")
    low = min(float(numbers.min()) for numbers in there.values())
    high = max(float(numbers.max()) for numbers in there.values())
    edges = np.linspace(low, max(high, low + 1e-3), _BINS + 1)
    for place, (name, numbers) in enumerate(there.items()):
        shares = np.histogram(numbers, edges)[0] / len(numbers)
        axes.stairs(shares, edges, color=series_colour(place), linewidth=1.6, label=name)
    said = "; ".join(f"{name}: mean {numbers.mean():.3f}" for name, numbers in there.items())
    return _done(figure, axes, key, title, f"{caption} {said}.", said)


def _frequencies(found: Analysis) -> Drawn:
    figure, axes = _panel("the 100 most common captions, in order", "times that each occurs")
    for place, (name, one) in enumerate(found.sources.items()):
        ranks = np.arange(1, len(one.frequencies) + 1)
        axes.plot(ranks, one.frequencies, color=series_colour(place), linewidth=1.6, label=name)
    axes.set_yscale("log")
    _plain(axes.yaxis)
    said = "; ".join(f"{name}: {one.frequencies[0]:,} times at most" for name, one in found.sources.items())
    return _done(
        figure, axes, "frequencies", "Common captions", f"How often they occur (FFF, Figure 2c). {said}.", said
    )


def _ranks(found: Analysis) -> Drawn:
    figure, axes = _panel("rank of the true caption", "share of images up to this rank")
    for place, (name, one) in enumerate(found.sources.items()):
        ordered = np.sort(one.ranks)
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, shares, where="post", color=series_colour(place), linewidth=1.6, label=name)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    said = "; ".join(f"{name}: first for {np.mean(one.ranks == 1):.1%}" for name, one in found.sources.items())
    caption = f"Among the captions of up to 1,000 images (FFF, Figure 3c). {said}."
    return _done(figure, axes, "ranks", "Rank of the true caption", caption, said)


def _panel(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0.12, 0.2, 0.85, 0.66))
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=10, color=MUTED)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _plain(axis: Axis) -> None:
    """Tick labels as plain numbers instead of powers of ten, without minor labels."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _done(figure: Figure, axes: Axes, key: str, title: str, caption: str, said: str) -> Drawn:
    axes.legend()
    return Drawn(title, caption, to_svg(figure, f"figure-{key}", title, said))
