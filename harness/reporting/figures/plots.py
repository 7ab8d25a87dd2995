"""The figures of the HTML page. A figure is drawn only if there is data; the tables hold the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.config.ablation import margin_size
from harness.reporting.collect.comparison import ArmValue, Column
from harness.reporting.collect.curves import LearningCurve, read_curves
from harness.reporting.collect.factors import Factor, factors
from harness.reporting.collect.pareto import PRICES, Offer, Price, offers
from harness.reporting.collect.results import TRAINING, Results
from harness.reporting.figures.frames import (
    LEGEND_WIDTH,
    Style,
    dot,
    legend_columns,
    numeric_axis,
    panel,
    row_panel,
    row_text,
    shortened,
    unit_text,
)
from harness.reporting.figures.maps import heat_figure, pareto_figure
from harness.reporting.figures.svg import BASELINE, INK, MUTED, RC, SERIES, series_colour, to_svg
from harness.reporting.formats.numbers import difference, mean, named, value
from harness.reporting.sections.answer import is_shown
from harness.reporting.sections.document import Document
from harness.runs.metrics import is_share
from harness.statistics import Interval, Summary

MOST_ROWS = 40
MOST_OFFERS = 10
_MARKERS = "os^DvPX*"


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    key: str
    title: str
    caption: str
    svg: str


class Figures:
    """Draws the figures of one report. An arm looks the same in all of them."""

    def __init__(self, document: Document) -> None:
        self.results, self.document = document.results, document
        self.column = document.primary
        self.metric = self.column.metric
        self.baseline = document.ablation.baseline
        self.styles = _styles(self.results, self.column)

    def pictures(self) -> list[Picture]:
        """All figures for which there is data."""
        with mpl.rc_context(RC):
            over = [*self._factors(), self._heat(), *self._pareto()]
            found = [self._forest(), self._seeds(), *over, *self._curves(), self._mining()]
        return [picture for picture in found if picture is not None]

    def _forest(self) -> Picture | None:
        arms = [arm for arm in self.column.arms.values() if arm.difference is not None]
        if not arms:
            return None
        arms, left_out = _most(arms, self.column)
        figure, axes = row_panel(len(arms))
        axes.axvline(0, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)))
        margin = self.document.ablation.margin
        if margin is not None:
            size = self._scaled(margin_size(margin)[0])
            axes.axvspan(-size, size, color=BASELINE, alpha=0.12, linewidth=0)
        band = "" if margin is None else f"Shaded: equal within {margin}. "
        for place, arm in enumerate(arms):
            self._difference(axes, place, arm)
        errors = self.document.sample_errors
        for place, arm in enumerate(arms):
            if error := errors.get(arm.arm):
                self._bar(axes, place + 0.28, error.interval, MUTED, 1.2)
        baseline = self.results.labels[self.baseline]
        what = "points" if is_share(self.metric) else self.metric
        axes.set_xlabel(f"{shortened(baseline, 30)} = 0; difference in {what}")
        better = "right" if self.column.higher_is_better else "left"
        grey = "Grey below: these checkpoints on another test set. " if any(errors.values()) else ""
        caption = (
            f"Differences to {baseline} in {self.metric} with 95 % intervals: thick of each arm alone, thin of all "
            f"arms together; further {better} is better. {grey}Filled: p < 0.05 after Holm's "
            f"correction. {band}{left_out}"
        )
        title = "Differences to the baseline"
        said = "; ".join(
            f"{self._label(arm.arm)}: {difference(self.metric, arm.difference)}" for arm in arms if arm.difference
        )
        return self._picture(figure, "forest", title, caption, said)

    def _difference(self, axes: Axes, place: int, arm: ArmValue) -> None:
        delta, style = arm.difference, self._style(arm.arm)
        assert delta is not None
        x = self._scaled(delta.mean)
        for interval, width in ((arm.simultaneous, 1), (delta.interval, 2.5)):
            if interval is not None:
                self._bar(axes, place, interval, style.colour, width)
        dot(axes, x, place, style, filled=is_shown(arm))
        row_text(axes, place, self._label(arm.arm), difference(self.metric, delta))

    def _bar(self, axes: Axes, place: float, interval: Interval, colour: str, width: float) -> None:
        ends = [self._scaled(interval.low), self._scaled(interval.high)]
        axes.plot(ends, [place, place], color=colour, linewidth=width, solid_capstyle="round")

    def _seeds(self) -> Picture | None:
        arms = [arm for arm in self.column.arms.values() if arm.summary is not None and not arm.foreign]
        if not arms:
            return None
        arms, left_out = _most(arms, self.column)
        figure, axes = row_panel(len(arms))
        for place, arm in enumerate(arms):
            style = self._style(arm.arm)
            assert arm.summary is not None
            numbers = [self._scaled(number) for number in arm.values.values()]
            centre = self._scaled(arm.summary.mean)
            axes.plot([centre, centre], [place - 0.22, place + 0.22], color=style.colour, linewidth=2.5)
            axes.plot(numbers, [place] * len(numbers), style.marker, color=style.colour, markersize=6, alpha=0.7)
            row_text(axes, place, self._label(arm.arm), mean(self.metric, arm.summary))
        axes.set_xlabel(f"{self.metric}{unit_text(self.metric)}")
        caption = (
            f"Every run: a mark is one seed, the bar their mean; at the right mean ± standard deviation. {left_out}"
        )
        said = "; ".join(
            f"{self._label(arm.arm)}: " + ", ".join(value(self.metric, number) for number in arm.values.values())
            for arm in arms
        )
        return self._picture(figure, "seeds", "Every seed", caption, said)

    def _factors(self) -> list[Picture | None]:
        return [
            self._factor(factor, place)
            for place, factor in enumerate(factors(self.results, self.column))
            if len(factor.lines) <= SERIES
        ]

    def _factor(self, factor: Factor, place: int) -> Picture:
        alone = factor.lines[0].label if len(factor.lines) == 1 else ""
        legend = [] if len(factor.lines) == 1 else [shortened(line.label, LEGEND_WIDTH) for line in factor.lines]
        figure, axes = panel(legend)
        for number, line in enumerate(factor.lines):
            xs = [x for x, _ in line.points]
            ys = [self._scaled(summary.mean) for _, summary in line.points]
            bars = [self._scaled(summary.sd or 0.0) for _, summary in line.points]
            axes.errorbar(
                xs,
                ys,
                yerr=bars,
                label=shortened(line.label, LEGEND_WIDTH),
                color=series_colour(number),
                marker=_MARKERS[number],
                capsize=3,
                linewidth=1.8,
            )
        numeric_axis(axes, sorted({x for line in factor.lines for x, _ in line.points}))
        axes.set_xlabel(factor.axis)
        self._finish(figure, axes, self.metric, legend)
        said = "; ".join(f"{line.label or factor.axis}: {_said(self.metric, line.points)}" for line in factor.lines)
        caption = f"{self.metric} over {factor.axis}: mean over seeds, bars are one standard deviation."
        caption += f" All at {alone}." if alone else ""
        caption += " Levels without a result are left out."
        return self._picture(figure, f"factor-{place}", f"Effect of {factor.axis}", caption, said)

    def _heat(self) -> Picture | None:
        drawn = heat_figure(self.column, self.results.design)
        if drawn is None:
            return None
        caption = f"{self.metric}{unit_text(self.metric)}: mean over seeds, deeper is higher."
        return self._picture(drawn[0], "heat", f"{self.metric} over two factors", caption, drawn[1])

    def _pareto(self) -> list[Picture | None]:
        found = ((price, offers(self.results, self.column, price)) for price in PRICES)
        return [self._offer(price, arms) for price, arms in found if arms]

    def _offer(self, price: Price, arms: list[Offer]) -> Picture:
        shown = [offer for offer in arms if offer.arm in self.styles or offer.on_front][:MOST_OFFERS]
        figure, axes, legend = pareto_figure(shown, price, self.metric, self.results.labels, self._style)
        self._finish(figure, axes, self.metric, legend)
        size, unit = price.unit(one.price for one in arms)
        said = "; ".join(
            f"{self._label(one.arm)}: {one.price / size:.3g} {unit}, {value(self.metric, one.quality)}" for one in arms
        )
        front = ", ".join(named(self._label(one.arm)) for one in arms if one.on_front)
        caption = (
            f"Filled and joined: no other arm is at least as good for less ({front}). Means over seeds, as measured."
        )
        return self._picture(figure, f"pareto-{price.key}", f"Quality against {price.name.lower()}", caption, said)

    def _curves(self) -> list[Picture | None]:
        names = ["loss", self.metric, "mining_precision"]
        titles = ["Training loss", f"{self.metric} during training", "Mining precision during training"]
        found = read_curves(self.results, self.styles, names)
        return [
            self._curve(name, title, found[name]) for name, title in zip(names, titles, strict=True) if name in found
        ]

    def _curve(self, name: str, title: str, curves: Sequence[LearningCurve]) -> Picture:
        legend = [shortened(self._label(curve.arm), LEGEND_WIDTH) for curve in curves]
        figure, axes = panel(legend)
        for curve in curves:
            style = self._style(curve.arm)
            scale = 100 if is_share(name) else 1
            line = (0, (5, 2)) if style.dashed else "-"
            axes.fill_between(curve.steps, scale * curve.low, scale * curve.high, color=style.colour, alpha=0.14, lw=0)
            label = shortened(self._label(curve.arm), LEGEND_WIDTH)
            axes.plot(curve.steps, scale * curve.mean, color=style.colour, lw=1.8, ls=line, label=label)
        axes.set_xlabel("step")
        self._finish(figure, axes, name, legend)
        few = len(self.styles) < len(self.results.by_arm)
        caption = f"{name}: mean over an arm's finished runs, band from the lowest to the highest seed."
        several = len({arm.experiment.loss.label for arm in self.results.plan.arms}) > 1
        caption += " Losses of different objectives are on different scales." if name == "loss" and several else ""
        caption += f" The baseline and the best arms, {len(self.styles)} of {len(self.results.by_arm)}." if few else ""
        said = "; ".join(f"{self._label(curve.arm)} ends at {value(name, float(curve.mean[-1]))}" for curve in curves)
        return self._picture(figure, f"curve-{name}", title, caption, said)

    def _mining(self) -> Picture | None:
        parts = [("mining_precision", "precision", True), ("mining_recall", "recall", False)]
        columns = {key: self.document.column(f"{TRAINING}/{key}") for key, _, _ in parts}
        means = {
            key: {arm.arm: arm.summary for arm in column.arms.values() if arm.summary}
            for key, column in columns.items()
        }
        arms = [arm for arm in self.results.by_arm if any(arm in found for found in means.values())][:MOST_ROWS]
        if not arms:
            return None
        figure, axes = row_panel(len(arms))
        texts = []
        for place, arm in enumerate(arms):
            style, said, numbers = self._style(arm), [], []
            for key, name, filled in parts:
                if summary := means[key].get(arm):
                    dot(axes, 100 * summary.mean, place, style, filled=filled)
                    said.append(f"{name} {value(key, summary.mean)}")
                    numbers.append(value(key, summary.mean))
            row_text(axes, place, self._label(arm), " / ".join(numbers))
            texts.append(f"{self._label(arm)}: {', '.join(said)}")
        axes.set_xlim(0, 102)
        axes.set_xlabel("% (filled: precision, open: recall)")
        approximate = any(arm.experiment.data.has_approximate_truth for arm in self.results.plan.arms)
        truth = "an approximate truth" if approximate else "the known truth"
        caption = f"Mined positives against {truth} at the end of training: precision / recall, mean over seeds."
        return self._picture(figure, "mining", "Mined positives", caption, "; ".join(texts))

    def _finish(self, figure: Figure, axes: Axes, metric: str, legend: Sequence[str]) -> None:
        axes.set_title(f"{metric}{unit_text(metric)}", loc="left", fontsize=10, color=MUTED)
        if legend:
            columns = legend_columns(legend)
            box = (0.0, 0.0, 1.0, 1.0)
            figure.legend(loc="lower left", ncol=columns, bbox_to_anchor=box, borderaxespad=0.2, handlelength=2.2)

    def _picture(self, figure: Figure, key: str, title: str, caption: str, said: str) -> Picture:
        key = "".join(character if character.isalnum() else "-" for character in key)
        return Picture(key, title, caption.strip(), to_svg(figure, f"figure-{key}", title, said))

    def _label(self, arm: str) -> str:
        return self.results.labels[arm]

    def _style(self, arm: str) -> Style:
        return self.styles.get(arm, Style(INK, "o"))

    def _scaled(self, number: float) -> float:
        return 100 * number if is_share(self.metric) else number


def _styles(results: Results, column: Column) -> dict[str, Style]:
    """A style for the baseline and the best arms, in declared order, at most one arm per colour."""
    baseline = results.plan.ablation.baseline
    ranked = [arm.arm for arm in column.comparable if arm.arm != baseline]
    ranked += [arm for arm in results.by_arm if arm != baseline and arm not in ranked]
    chosen = set(ranked[:SERIES])
    others = [arm for arm in results.by_arm if arm in chosen]
    looks = {arm: Style(series_colour(place), _MARKERS[place]) for place, arm in enumerate(others)}
    return {baseline: Style(BASELINE, "o", dashed=True)} | looks


def _most(arms: list[ArmValue], column: Column) -> tuple[list[ArmValue], str]:
    """The arms that get a row in a figure, and a sentence if some are left out."""
    if len(arms) <= MOST_ROWS:
        return arms, ""
    order = {arm.arm: place for place, arm in enumerate(column.comparable)}
    best = sorted(arms, key=lambda arm: order.get(arm.arm, len(order)))[:MOST_ROWS]
    return best, f"The best {MOST_ROWS} of {len(arms)} arms; the table has all."


def _said(metric: str, points: Sequence[tuple[float, Summary]]) -> str:
    return ", ".join(f"{x:g}: {mean(metric, summary)}" for x, summary in points)
