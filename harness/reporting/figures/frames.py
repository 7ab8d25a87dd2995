"""Helpers shared by the figures of a page: sizes, rows and panels, labels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.figures.svg import INK, MUTED
from harness.reporting.formats.numbers import higher_is_better, unit

WIDTH = 370.0
"""Points; one unit of the page's SVG, so that text is readable at 375 px and not too large beside prose."""
ROW = 34.0
LEGEND_WIDTH = 54


@dataclass(frozen=True)
class Style:
    """Style of an arm in every figure."""

    colour: str
    marker: str
    dashed: bool = False


def row_panel(number: int) -> tuple[Figure, Axes]:
    """A figure with one row per arm, the first at the top."""
    height = ROW * number + 46
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((0.02, 40 / height, 0.96, (height - 46) / height))
    axes.set_ylim(number - 0.45, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    return figure, axes


def row_text(axes: Axes, place: int, left: str, right: str) -> None:
    """Write the name of a row, and the texts at its ends."""
    x, y = axes.get_yaxis_transform(), place - 0.42
    axes.text(0.0, y, shortened(left, 46), color=INK, fontsize=10.5, va="center", transform=x)
    axes.text(1.0, y, right.replace("-", "−"), color=MUTED, fontsize=10, ha="right", va="center", transform=x)


def dot(axes: Axes, x: float, place: int, style: Style, *, filled: bool) -> None:
    """A mark in a row. An open mark means weaker evidence."""
    face = style.colour if filled else "none"
    axes.plot([x], [place], style.marker, color=style.colour, markerfacecolor=face, markersize=7)


def panel(legend: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one pair of axes and room for its legend below."""
    rows = -(-len(legend) // legend_columns(legend)) if legend else 0
    below, above = 46 + 15.5 * rows, 24
    height = 200 + below + above
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((0.11, below / height, 0.86, 200 / height))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def legend_columns(legend: Sequence[str]) -> int:
    """How many legend entries fit side by side."""
    return 2 if legend and max(map(len, legend)) <= 22 else 1


def numeric_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Ticks at the levels, on a logarithmic axis if they span a wide range."""
    if levels[0] > 0 and levels[-1] / levels[0] >= 16:
        axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()


def shortened(text: str, width: int) -> str:
    """Text cut at a word to `width` characters."""
    return textwrap.shorten(text, width, placeholder="…")


def unit_text(metric: str) -> str:
    """The unit of a metric's axis, with a hint if lower is better."""
    better = "" if higher_is_better(metric) else ", lower is better"
    return f" ({unit(metric).strip()}{better})" if unit(metric) else better
