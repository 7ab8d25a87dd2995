"""A table as data, which every format prints in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class TableCell:
    """One cell. `text` is untrusted: each format escapes it."""

    text: str
    best: bool = False
    """The best of its column, printed in bold."""
    muted: bool = False
    """Nothing was measured: missing, failed, not applicable."""


@dataclass(frozen=True)
class Head:
    """A column's head."""

    text: str
    numeric: bool = True
    """Numbers are set flush right, text flush left."""
    group: str = ""
    """What it stands under together with its neighbours of the same group."""

    @property
    def full(self) -> str:
        """Its text for formats that have one row of heads."""
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
        """Heads above the heads, each with the columns that it spans; empty where there is none."""
        if not any(head.group for head in self.heads):
            return []
        return [(group, len(list(heads))) for group, heads in groupby(head.group for head in self.heads)]


def words(*texts: str) -> tuple[Head, ...]:
    """Heads of columns of text."""
    return tuple(Head(text, numeric=False) for text in texts)


def numbers(*texts: str) -> tuple[Head, ...]:
    """Heads of columns of numbers."""
    return tuple(Head(text) for text in texts)
