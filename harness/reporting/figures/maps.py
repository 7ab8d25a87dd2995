"""Figures over two quantities: quality against cost, and a metric over two factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.reporting.collect.comparison import Column
from harness.reporting.collect.design import Design, factor_name
from harness.reporting.collect.pareto import Offer, Price
from harness.reporting.figures.frames import LEGEND_WIDTH, WIDTH, Style, panel, shortened
from harness.reporting.figures.svg import INK, MUTED, series_colour
from harness.reporting.formats.numbers import value
from harness.runs.metrics import is_share

MOST_CELLS = 8
"""Largest number of levels of a factor in a heat map."""
LEAST_CELLS = 3


def pareto_figure(
    offers: Sequence[Offer], price: Price, metric: str, labels: Mapping[str, str], style: Callable[[str], Style]
) -> tuple[Figure, Axes, list[str]]:
    """Plot arms by cost and quality, with those on the front filled and joined. Returns the legend's entries too."""
    legend = [shortened(labels[offer.arm], LEGEND_WIDTH) for offer in offers]
    figure, axes = panel(legend)
    scale = 100 if is_share(metric) else 1
    size, unit = price.unit(offer.price for offer in offers)
    front = [offer for offer in offers if offer.on_front]
    costs, qualities = [offer.price / size for offer in front], [scale * offer.quality for offer in front]
    axes.step(costs, qualities, where="post", color=MUTED, lw=1)
    for offer, text in zip(offers, legend, strict=True):
        look = style(offer.arm)
        face = look.colour if offer.on_front else "none"
        point = ([offer.price / size], [scale * offer.quality])
        axes.plot(*point, look.marker, color=look.colour, markerfacecolor=face, markersize=8, ls="none", label=text)
    prices = [offer.price for offer in offers]
    if min(prices) > 0 and max(prices) / min(prices) > 20:
        axes.set_xscale("log")
    axes.set_xlabel(f"{price.name} ({unit})")
    axes.margins(x=0.08, y=0.1)
    return figure, axes, legend


def heat_figure(column: Column, design: Design) -> tuple[Figure, str] | None:
    """Heat map of the metric over two factors, and the same in words. None for other designs."""
    if not design.is_product or len(design.factors) != 2:
        return None
    (down, rows), (across, columns) = design.factors.items()
    if not all(LEAST_CELLS <= len(levels) <= MOST_CELLS for levels in (rows, columns)):
        return None
    means = {arm.arm: arm.summary.mean for arm in column.comparable if arm.summary}
    figure, axes = _heat_axes(len(rows), len(columns))
    said = []
    for y, row in enumerate(rows):
        for x, level in enumerate(columns):
            arm = design.arm_at({down: row, across: level})
            if arm in means:
                _cell(axes, (x, y), means[arm], (min(means.values()), max(means.values())), column.metric)
                said.append(
                    f"{factor_name(down)} {row}, {factor_name(across)} {level}: {value(column.metric, means[arm])}"
                )
    axes.set_xticks(range(len(columns)), [shortened(level, 14) for level in columns])
    axes.set_yticks(range(len(rows)), [shortened(level, 14) for level in rows])
    axes.set_xlabel(factor_name(across))
    axes.set_title(factor_name(down), loc="left", fontsize=10, color=MUTED)
    return figure, "; ".join(said)


def _heat_axes(rows: int, columns: int) -> tuple[Figure, Axes]:
    below, above = 46.0, 24.0
    height = 40.0 * rows + below + above
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((0.24, below / height, 0.74, (height - below - above) / height))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _cell(axes: Axes, place: tuple[int, int], mean: float, ends: tuple[float, float], metric: str) -> None:
    x, y = place
    share = (mean - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
    corner = (x - 0.47, y - 0.46)
    axes.add_patch(Rectangle(corner, 0.94, 0.92, color=series_colour(0), alpha=0.08 + 0.67 * share, lw=0))
    axes.text(x, y, value(metric, mean), ha="center", va="center", color=INK, fontsize=10.5)
