"""The HTML page of a search: the tables of `report`, and figures in the style of the other reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.base.files import write_text
from harness.config.search import Choice
from harness.reporting.figures.frames import WIDTH
from harness.reporting.figures.plots import Picture
from harness.reporting.figures.svg import MUTED, RC, series_colour, to_svg
from harness.reporting.formats.page import templates
from harness.searching.driver import Driver
from harness.searching.report import (
    answer,
    best_table,
    cost_table,
    decisions_table,
    doubts,
    importance_table,
    importances,
)
from harness.searching.samplers import encoded
from harness.searching.study import Trial

HEIGHT = 240.0
_POINTS = 72.0


def write_page(driver: Driver, folder: Path) -> Path:
    """Write the page into `folder` under the search's name, and return its path."""
    path = folder / f"{driver.folder.path.name}.html"
    write_text(path, as_html(driver))
    return path


def as_html(driver: Driver) -> str:
    """The page; text from specs is escaped by the template engine."""
    tables = [best_table(driver), importance_table(driver), decisions_table(driver), cost_table(driver)]
    with mpl.rc_context(RC):
        pictures = [(one, Markup(one.svg)) for one in _pictures(driver)]
    return (
        templates()
        .get_template("search.html")
        .render(
            name=driver.folder.path.name,
            question=driver.search.question,
            answer=answer(driver),
            notes="\n\n".join([*filter(None, [driver.search.notes]), *driver.census(), *doubts(driver)]),
            tables=[table for table in tables if table is not None],
            pictures=pictures,
        )
    )


def _pictures(driver: Driver) -> Iterator[Picture]:
    tried = [one for one in driver.study.trials.values() if one.status != "skipped" and (one.curve or one.final)]
    if not tried:
        return
    yield _history(driver, tried)
    if any(len(one.curve) > 1 for one in tried):
        yield _curves(driver, tried)
    yield from _slices(driver, tried)
    ranked = list(importances(driver)) or list(driver.search.space)
    if len(ranked) > 1:
        yield _contour(driver, tried, ranked[0], ranked[1])
        yield _parallel(driver, tried)


def _history(driver: Driver, tried: list[Trial]) -> Picture:
    def draw(axes: Axes) -> None:
        full = [(one.number, one.final[0]) for one in tried if one.final]
        early = [(one.number, one.curve[one.reached]) for one in tried if not one.final]
        for points, colour, label in ((early, MUTED, "stopped early"), (full, series_colour(0), "full length")):
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=5, label=label)
        best: list[float] = []
        for _, value in full:
            losses = [driver.study.loss(one) for one in (*best[-1:], value)]
            best.append(min(losses) * (-1 if driver.search.objectives[0].goal == "maximise" else 1))
        axes.step([number for number, _ in full], best, where="post", color=series_colour(0))
        axes.set_xlabel("configuration")
        axes.set_ylabel(driver.search.objectives[0].metric)
        axes.legend()

    caption = "Each configuration's value; the line is the best at full length so far."
    return _picture("history", "History", caption, draw)


def _curves(driver: Driver, tried: list[Trial]) -> Picture:
    def draw(axes: Axes) -> None:
        winner = driver.study.best()
        for one in tried:
            levels = sorted(one.curve)
            colour = series_colour(0) if one is winner else MUTED
            axes.plot(levels, [one.curve[level] for level in levels], color=colour, linewidth=1.2, alpha=0.8)
            axes.plot(levels[-1:], [one.curve[level] for level in levels[-1:]], "o" if one.final else "x", color=colour)
        axes.set_xlabel("evaluation")
        axes.set_ylabel(driver.search.objectives[0].metric)

    caption = "A line is a configuration; a cross is where it was stopped, a dot its full length; in colour the winner."
    return _picture("curves", "Learning curves and stops", caption, draw)


def _slices(driver: Driver, tried: list[Trial]) -> Iterator[Picture]:
    for number, (path, parameter) in enumerate(driver.search.space.items()):

        def draw(axes: Axes, path: str = path, log: bool = not isinstance(parameter, Choice) and parameter.log) -> None:
            _points(axes, tried, lambda one: _number(driver, one, path), _value)
            if log:
                axes.set_xscale("log")
            axes.set_xlabel(path)
            axes.set_ylabel(driver.search.objectives[0].metric)

        yield _picture(f"slice-{number}", f"Slice: {path}", "Filled: full length; open: stopped early.", draw)


def _contour(driver: Driver, tried: list[Trial], first: str, second: str) -> Picture:
    def draw(axes: Axes) -> None:
        x, y = ([_number(driver, one, path) for one in tried] for path in (first, second))
        losses = [driver.study.loss(_value(one)) for one in tried]
        ranks = np.argsort(np.argsort(losses)) / max(len(losses) - 1, 1)
        if len(tried) >= 4 and len(set(x)) > 2 and len(set(y)) > 2:
            try:
                axes.tricontour(x, y, losses, levels=6, colors=MUTED, linewidths=0.8)
            except (RuntimeError, ValueError):  # all points lie on one line
                axes.set_title("")
        for left, up, rank in zip(x, y, ranks.tolist(), strict=True):
            axes.plot([left], [up], "o", color=series_colour(0), alpha=1 - 0.85 * rank, markersize=6)
        axes.set_xlabel(first)
        axes.set_ylabel(second)

    caption = "The two fields that mattered most; the stronger a dot, the better its configuration by rank."
    return _picture("contour", "Contour", caption, draw)


def _parallel(driver: Driver, tried: list[Trial]) -> Picture:
    def draw(axes: Axes) -> None:
        paths = list(driver.search.space)
        columns = np.array([[_number(driver, one, path) for path in paths] for one in tried])
        low, high = columns.min(0), columns.max(0)
        places = (columns - low) / np.where(high > low, high - low, 1)
        losses = [driver.study.loss(_value(one)) for one in tried]
        ranks = np.argsort(np.argsort(losses)) / max(len(losses) - 1, 1)
        for row, rank in zip(places, ranks.tolist(), strict=True):
            axes.plot(range(len(paths)), row, color=series_colour(0), alpha=1 - 0.9 * rank, linewidth=1.2)
        axes.set_xticks(range(len(paths)), [path.rpartition(".")[2] for path in paths], rotation=15)
        axes.set_yticks([0, 1], ["lowest", "highest"])

    return _picture("parallel", "Parallel coordinates", "A line is a configuration; the stronger, the better.", draw)


def _points(axes: Axes, tried: list[Trial], x: Callable[[Trial], float], y: Callable[[Trial], float]) -> None:
    for one in tried:
        face = series_colour(0) if one.final else "none"
        axes.plot([x(one)], [y(one)], "o", color=series_colour(0), markerfacecolor=face, markersize=5)


def _value(trial: Trial) -> float:
    return trial.final[0] if trial.final else trial.curve[trial.reached]


def _number(driver: Driver, trial: Trial, path: str) -> float:
    """A value's position on an axis; for a choice, its index."""
    parameter = driver.search.space[path]
    if isinstance(parameter, Choice):
        return float(parameter.names.index(encoded({path: parameter}, {path: trial.values[path]})[path]))
    return float(trial.values[path])


def _picture(key: str, title: str, caption: str, draw: Callable[[Axes], None]) -> Picture:
    figure = Figure(figsize=(WIDTH / _POINTS, HEIGHT / _POINTS), layout="constrained")
    draw(figure.add_subplot())
    return Picture(key, title, caption, to_svg(figure, key, title, caption))
