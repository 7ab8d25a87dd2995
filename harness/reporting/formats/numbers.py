"""Number formats: shares as percent or points with one decimal, everything else plain."""

from __future__ import annotations

import re

from harness.runs.metrics import is_share
from harness.statistics import Difference, Interval, Summary

NOTHING = "–"
_WORD = re.compile(r"[\w.=-]*")


def higher_is_better(metric: str) -> bool:
    """True for every metric but `loss` and those that end in `_loss`."""
    name = metric.rpartition("/")[2]
    return name != "loss" and not name.endswith("_loss")


def unit(metric: str) -> str:
    """Suffix of a value: ` %`, or empty."""
    return " %" if is_share(metric) else ""


def points(metric: str) -> str:
    """Suffix of a difference: ` points`, or empty."""
    return " points" if is_share(metric) else ""


def heading(metric: str) -> str:
    """A metric as a column's head."""
    return f"{metric} (%)" if is_share(metric) else metric


def value(metric: str, number: float) -> str:
    """One value without its unit."""
    # adding zero turns -0.0, a rounded small negative number, into 0.0
    return f"{round(100 * number, 1) + 0.0:.1f}" if is_share(metric) else plain(number)


def mean(metric: str, summary: Summary) -> str:
    """Mean and standard deviation over seeds: `61.4 ± 1.2`."""
    if summary.sd is None:
        return value(metric, summary.mean)
    is_plain = not is_share(metric) and 0.001 <= abs(summary.mean) < 1e7
    spread = f"{summary.sd:,.{_decimals(summary.mean)}f}" if is_plain else value(metric, summary.sd)
    return f"{value(metric, summary.mean)} ± {spread}"


def signed(metric: str, number: float) -> str:
    """A difference with its sign: `+3.2`."""
    text = value(metric, number)
    return text if text.startswith("-") else f"+{text}"


def interval(metric: str, bounds: Interval) -> str:
    """A confidence interval: `[1.1, 5.3]`."""
    return f"[{value(metric, bounds.low)}, {value(metric, bounds.high)}]"


def difference(metric: str, delta: Difference, *, with_points: bool = False) -> str:
    """A paired difference with its 95 % interval: `+3.2 [1.1, 5.3]`; without an interval, with the reason."""
    text = signed(metric, delta.mean) + (points(metric) if with_points else "")
    if delta.interval is not None:
        return f"{text} {interval(metric, delta.interval)}"
    return f"{text} ({'one seed' if delta.n == 1 else 'no spread'})"


def p_value(p: float | None) -> str:
    """A p-value with three decimals."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compared(p: float | None) -> str:
    """A p-value in a sentence: `= 0.007`, `< 0.001`."""
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def plain(number: float) -> str:
    """A number on an unknown scale, with about four digits."""
    if number != 0 and (abs(number) < 0.001 or abs(number) >= 1e7):
        return f"{number:.3g}"
    decimals = _decimals(number)
    return f"{round(number, decimals) + 0.0:,.{decimals}f}"


def _decimals(number: float) -> int:
    size = abs(number)
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def minutes(seconds: float) -> str:
    """A duration in readable units."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def named(label: str) -> str:
    """An arm's name in a sentence: in quotation marks unless it is one word."""
    return label if _WORD.fullmatch(label) else f"“{label}”"


def clean(text: str) -> str:
    """Text from a spec or a record on one line, without terminal control characters."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)
