"""The HTML page: one file, no scripts, no network; works on a phone, in dark mode and with a screen reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from harness.base.html import environment
from harness.base.version import __version__
from harness.reporting.collect.results import Results
from harness.reporting.figures.plots import Figures
from harness.reporting.formats.numbers import clean, compared, count, difference, named
from harness.reporting.formats.table import Head, Table, TableCell
from harness.reporting.sections.answer import Verdict
from harness.reporting.sections.detail import protocol_texts
from harness.reporting.sections.document import Document

TEMPLATES = Path(__file__).parent / "templates"
LEADING = "forest"
"""The figure below the verdicts. A reader opens the others."""
GALLERY_FIGURES = ("positives per image", "mined per image", "mining precision", "mining recall")
"""Metrics shown for a gallery's batch; the training metrics have the others."""
_NEGATIVE = re.compile(r"(?<![\w.)-])-(?=\d)")
_SEPARATOR = re.compile(r"([/_])(?=\w{3})")


def as_html(document: Document) -> str:
    """The whole report. Text from specs and records is escaped by the template engine."""
    results = document.results
    # this code generates the SVG and escapes its text: see svg.py
    drawn = Figures(document).pictures() if results.done else []
    pictures = [(picture, Markup(picture.svg)) for picture in drawn]
    return (
        templates()
        .get_template("report.html")
        .render(
            document=document,
            progress=f"{len(results.done)} of {count(len(results.runs), 'run')} done",
            leading=[one for one in pictures if one[0].key == LEADING],
            further=[one for one in pictures if one[0].key != LEADING],
            verdicts=[_verdict(document, one) for one in document.verdicts],
            protocols=[tuple(map(clean, one[:2])) + one[2:] for one in protocol_texts(results)],
            as_of=_as_of(results),
            version=__version__,
            shown_figures=GALLERY_FIGURES,
        )
    )


@dataclass(frozen=True)
class _Verdict:
    """A claim as the page shows it. The table of claims has the rest."""

    claim: str
    word: str
    why: str
    """What the word alone does not say."""
    numbers: str
    arms: str


def _verdict(document: Document, one: Verdict) -> _Verdict:
    labels = document.results.labels
    found = [difference(one.metric, one.difference, with_points=True)] if one.difference else []
    name, p = ("p of inequality", one.equality_p) if one.word == "equal" else ("p", one.p)
    found += [f"{name} {compared(p)}"] if p is not None else []
    found += [one.metric] if one.metric != document.primary.metric else []
    arms = f"{named(labels[one.claim.arm])} against {named(labels[one.claim.than])}"
    why = one.text.removeprefix(one.word).strip()
    return _Verdict(one.claim.text, one.word, why, ", ".join(found), arms)


def templates(*more: Path) -> jinja2.Environment:
    """The templates in this package and in the folders `more`, which may extend them, so that all pages look alike."""
    found = environment(TEMPLATES, *more)
    found.globals["style"] = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    found.filters |= {
        "number": _number,
        "plain": clean,
        "breakable": _breakable,
        "heading": _heading_classes,
        "rows": _rows,
    }
    return found


def _rows(table: Table) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each row as its name and the (classes, text) of its other cells."""
    for row in table.rows:
        cells = zip(row[1:], table.heads[1:], strict=True)
        yield clean(row[0].text), [(_classes(entry, head), _number(entry.text)) for entry, head in cells]


def _classes(entry: TableCell, head: Head) -> str:
    names = [("number", head.numeric), ("best", entry.best), ("muted", entry.muted)]
    names += [(name, not head.numeric and len(entry.text) > length) for name, length in (("prose", 12), ("long", 32))]
    return " ".join(name for name, holds in names if holds)


def _heading_classes(head: Head) -> str:
    return " ".join(name for name, holds in (("number", head.numeric), ("wide", len(head.text) > 24)) if holds)


def _number(text: str) -> str:
    """A hyphen before a number as a minus sign."""
    return _NEGATIVE.sub("−", clean(text)) if "-" in text else clean(text)


def _breakable(text: str) -> Markup:
    """A column's head that may break inside `set/metric_name`."""
    return Markup(_SEPARATOR.sub(r"\1<wbr>", str(escape(_number(text)))).replace(" %", "&nbsp;%"))


def _as_of(results: Results) -> str:
    """Time of the newest result, so that reports of the same results are identical."""
    ended = [run.record.ended_at for run in results.done if run.record]
    return datetime.fromtimestamp(max(ended), UTC).strftime("%Y-%m-%d %H:%M UTC") if ended else ""
