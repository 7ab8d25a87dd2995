"""Tables for a paper: LaTeX with booktabs, the best of a column in bold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.reporting.formats.numbers import clean
from harness.reporting.formats.table import Table, TableCell
from harness.reporting.sections.document import Document

_PRINTED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "−": r"$-$",
    "–": "--",
    "→": r"$\to$",
    "×": r"$\times$",
    "§": r"\S{}",
    "†": r"\textsuperscript{\dag}",
    "‡": r"\textsuperscript{\ddag}",
}
_HEADER = r"""% {question}
% {answer}
% Needs \usepackage[T1]{{fontenc}} and \usepackage{{booktabs}}. Made from the records of these runs:
% {runs}"""
_TABLE = r"""\begin{{table}}[t]
  \centering
  \caption{{{caption}{notes}}}
  \label{{tab:{label}}}
  \begin{{tabular}}{{{alignment}}}
    \toprule
{groups}    {head} \\
    \midrule
{rows}
    \bottomrule
  \end{{tabular}}
\end{{table}}"""
_NEGATIVE = re.compile(r"(?<![\w.)])-(?=\d)")


def as_latex(document: Document) -> str:
    """The tables that answer the question and one per evaluation set. A comment names the runs behind the numbers."""
    run_ids = [run.folder.id for run in document.results.done]
    header = _HEADER.format(
        question=_comment(document.question), answer=_comment(document.answer.sentence), runs=" ".join(run_ids)
    )
    tables = (latex_table(table, document.name) for table in (*document.answering, *document.sets))
    return "\n\n".join([header, *tables]) + "\n"


def latex_table(table: Table, document: str) -> str:
    """A booktabs table; its label is `tab:DOCUMENT-TABLE`."""
    return _TABLE.format(
        caption=escape(f"{table.caption}."),
        notes="".join(f" {escape(note)}" for note in table.notes),
        label=re.sub(r"[^A-Za-z0-9]+", "-", f"{document}-{table.key}"),
        alignment="".join("r" if head.numeric else "l" for head in table.heads),
        groups=_groups(table),
        head=" & ".join(escape(head.text) for head in table.heads),
        rows="\n".join(f"    {_row(row)} \\\\" for row in table.rows),
    )


def escape(text: str) -> str:
    """Text escaped for LaTeX; a hyphen before a number becomes a minus sign."""
    printed = "".join(_PRINTED.get(character, character) for character in clean(text))
    return _NEGATIVE.sub("$-$", printed)


def _groups(table: Table) -> str:
    """A row of heads over the heads, with a rule under each group."""
    cells, rules, first = [], [], 1
    for text, span in table.groups:
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(text)}}}" if text else " & ".join([""] * span))
        rules += [rf"\cmidrule(lr){{{first}-{first + span - 1}}}"] if text else []
        first += span
    return f"    {' & '.join(cells)} \\\\\n    {' '.join(rules)}\n" if cells else ""


def _row(entries: Sequence[TableCell]) -> str:
    return " & ".join(rf"\textbf{{{escape(entry.text)}}}" if entry.best else escape(entry.text) for entry in entries)


def _comment(text: str) -> str:
    return " ".join(clean(text).split())
