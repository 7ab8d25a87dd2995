"""Reports as text: rich tables on a terminal, plain aligned columns elsewhere."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from harness.reporting.formats.numbers import clean
from harness.reporting.formats.table import Table, TableCell
from harness.reporting.sections.document import Document

PLAIN_WIDTH = 100
TEXT_WIDTH = 24
GAP = 3


def as_terminal(document: Document) -> str:
    """The answer with its tables, without the detail tables of the other formats."""
    tables = [*document.answering, *([document.failures] if document.failures else [])]
    return _on_terminal(document, tables) if sys.stdout.isatty() else _plain(document, tables)


def plain_table(table: Table) -> str:
    """A table in aligned columns."""
    rows = [[TableCell(head.full) for head in table.heads], *table.rows]
    widths = [max(len(clean(row[place].text)) for row in rows) for place in range(len(table.heads))]
    lines = [_line(table, row, widths) for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([clean(table.caption), "", lines[0], rule, *lines[1:], *_notes(table)])


def rich_tables(table: Table, width: int) -> Iterator[RichTable]:
    """A table for rich's console, split into as many tables as needed to fit whole columns into `width` characters."""
    for part, columns in enumerate(_fitting(table, width)):
        title = None if part else Text(clean(table.caption))
        drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place in columns:
            head = table.heads[place]
            justify: Literal["left", "right"] = "right" if head.numeric else "left"
            least = _least(table, place)
            drawn.add_column(Text(_broken(head.full, least)), justify=justify, overflow="fold", min_width=least)
        for row in table.rows:
            drawn.add_row(*(Text(clean(row[place].text), style=_style(row[place])) for place in columns))
        yield drawn


def _fitting(table: Table, width: int) -> Iterator[list[int]]:
    """Groups of columns that fit side by side. The first column names the rows and is in every group."""
    columns, used = [0], _least(table, 0)
    for place in range(1, len(table.heads)):
        wide = _least(table, place) + GAP
        if used + wide > width and len(columns) > 1:
            yield columns
            columns, used = [0], _least(table, 0)
        columns, used = [*columns, place], used + wide
    yield columns


def _least(table: Table, place: int) -> int:
    """Minimum width of a column: numbers stay on one line, text may wrap."""
    widest = max((len(clean(row[place].text)) for row in table.rows), default=1)
    head = table.heads[place]
    longest_word = max(map(len, _broken(head.full, 1).split("\n")))
    return max(widest, longest_word) if head.numeric else max(min(widest, TEXT_WIDTH), longest_word)


def _broken(head: str, width: int) -> str:
    """A head on several lines, broken at spaces and inside `set/metric_name`."""
    lines = [""]
    for part in re.findall(r"[^ /_]*[ /_]?", clean(head)):
        if len((lines[-1] + part).rstrip()) > max(width, 12) and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _on_terminal(document: Document, tables: Sequence[Table]) -> str:
    out = StringIO()
    width = shutil.get_terminal_size().columns
    console = Console(file=out, force_terminal=True, width=width, highlight=False, emoji=False)
    console.print(Text(document.question, style="bold"))
    console.print(Text(document.answer.sentence, style="green"))
    for line in document.answer.details:
        console.print(Text(line))
    for flag in document.flags:
        console.print(Text(f"{flag.level}: {flag.text}", style="yellow" if flag.level == "warning" else "dim"))
    for table in tables:
        console.print()
        for drawn in rich_tables(table, width):
            console.print(drawn)
        for note in table.notes:
            console.print(Text(clean(note), style="dim"))
    return out.getvalue()


def _plain(document: Document, tables: Sequence[Table]) -> str:
    head = [document.question, document.answer.sentence, *document.answer.details]
    head += [f"{flag.level}: {flag.text}" for flag in document.flags]
    wrapped = "\n".join(textwrap.fill(line, PLAIN_WIDTH) for line in head)
    return "\n\n".join([wrapped, *(plain_table(table) for table in tables)]) + "\n"


def _line(table: Table, row: Sequence[TableCell], widths: Sequence[int]) -> str:
    cells = (
        clean(entry.text).rjust(width) if head.numeric else clean(entry.text).ljust(width)
        for entry, head, width in zip(row, table.heads, widths, strict=True)
    )
    return "  ".join(cells).rstrip()


def _notes(table: Table) -> Iterator[str]:
    if table.notes:
        yield ""
    for note in table.notes:
        yield textwrap.fill(clean(note), PLAIN_WIDTH)


def _style(entry: TableCell) -> str:
    return "bold" if entry.best else "dim" if entry.muted else ""
