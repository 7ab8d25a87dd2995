"""A table as data, rendered differently by every format."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class TableCell:
    """One cell. `text` is untrusted: each format escapes it."""

    text: str
    best: bool = False
    """Whether the cell is the best of its column, printed in bold."""
    muted: bool = False
    """Whether the cell has no measurement: missing, failed, not applicable."""


@dataclass(frozen=True)
class Head:
    """A column's head."""

    text: str
    numeric: bool = True
    """Whether the column holds numbers, aligned right; text is aligned left."""
    group: str = ""
    """Heading above this head and its neighbours of the same group."""

    @property
    def full(self) -> str:
        """Text for formats with one row of heads."""
        return f"{self.group} {self.text}".strip()


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first entry of a row names it."""

    key: str
    """Short name, for anchors and labels."""
    caption: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...] = ()
    """Printed below it."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Group headings, each with the number of columns that it spans; empty if there are none."""
        if not any(head.group for head in self.heads):
            return []
        return [(group, len(list(heads))) for group, heads in groupby(head.group for head in self.heads)]


def words(*texts: str) -> tuple[Head, ...]:
    """Heads of columns of text."""
    return tuple(Head(text, numeric=False) for text in texts)


def numbers(*texts: str) -> tuple[Head, ...]:
    """Heads of columns of numbers."""
    return tuple(Head(text) for text in texts)
