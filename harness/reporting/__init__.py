"""Reports: turns a plan and the records in its store into an answer, in formats for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.base.files import write_text
from harness.reporting.collect.results import Results, collect, refuse_nothing
from harness.reporting.formats.latex import as_latex
from harness.reporting.formats.machine import as_csv, as_json
from harness.reporting.formats.markdown import as_markdown
from harness.reporting.formats.terminal import as_terminal
from harness.reporting.sections.compare import compare
from harness.reporting.sections.document import Document
from harness.runs.names import claim_name, own_name
from harness.runs.store import Store

__all__ = [
    "SUFFIXES",
    "Document",
    "Format",
    "Results",
    "collect",
    "compare",
    "refuse_nothing",
    "render",
    "write_report",
]

Format = Literal["terminal", "md", "html", "latex", "csv", "json"]

SUFFIXES: dict[Format, str] = {
    "terminal": "txt",
    "md": "md",
    "html": "html",
    "latex": "tex",
    "csv": "csv",
    "json": "json",
}
"""File endings of the formats."""


def render(results: Results, format: Format) -> str:
    """The report as text. `terminal` has colours if the standard output is a terminal."""
    document = Document(results)
    match format:
        case "terminal":
            return as_terminal(document)
        case "md":
            return as_markdown(document)
        case "html":
            # only this format needs the template engine
            from harness.reporting.formats.page import as_html

            return as_html(document)
        case "latex":
            return as_latex(document)
        case "csv":
            return as_csv(results)
        case "json":
            return as_json(document)


def write_report(results: Results, format: Format, place: Store | Path) -> Path:
    """Write the report into a folder, or a store's folder of reports, under the ablation's name and return its path.

    In a store, two specs of one name have a page each.

    Raises:
        StoreError: the folder cannot be written.
    """
    name, file = results.plan.name, results.plan.file
    if isinstance(place, Store):
        name = own_name(name, file, place)
        claim_name(name, file, place)
        place = place.reports
    path = place / f"{name}.{SUFFIXES[format]}"
    write_text(path, render(results, format))
    return path
