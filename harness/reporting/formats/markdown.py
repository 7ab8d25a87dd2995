"""Reports as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.reporting.formats.numbers import clean
from harness.reporting.formats.table import Head, Table, TableCell
from harness.reporting.sections.document import Document

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def as_markdown(document: Document) -> str:
    """The whole report without its figures."""
    parts = [f"# {escape(document.question)}", f"**{escape(document.answer.sentence)}**"]
    parts += [escape(line) for line in document.answer.details]
    parts += [f"> **{flag.level}:** {escape(flag.text)}" for flag in document.flags]
    parts += [escape(document.notes)] if document.notes else []
    parts += [markdown_table(table) for table in (*document.answering, *document.detail)]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table under its caption as a heading."""
    return f"## {escape(table.caption)}\n\n{bare_table(table)}"


def bare_table(table: Table) -> str:
    """A table with its notes, without its caption."""
    lines = [
        _row([TableCell(head.full) for head in table.heads]),
        _rule(table.heads),
        *(_row(row) for row in table.rows),
    ]
    return "\n".join(lines) + "".join(f"\n\n{escape(note)}" for note in table.notes)


def escape(text: str) -> str:
    """Text escaped for Markdown and for HTML inside it."""
    return _SPECIAL.sub(r"\\\1", clean(text))


def _row(entries: Sequence[TableCell]) -> str:
    cells = (f"**{escape(entry.text)}**" if entry.best else escape(entry.text) for entry in entries)
    return f"| {' | '.join(cells)} |"


def _rule(heads: Sequence[Head]) -> str:
    return f"| {' | '.join('---:' if head.numeric else ':---' for head in heads)} |"
