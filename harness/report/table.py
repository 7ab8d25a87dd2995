"""A table as data, which every format prints in its own way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
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


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first entry of a row names it."""

    key: str
    """Short name, for anchors and labels."""
    caption: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    """Printed below it."""


def words(*texts: str) -> tuple[Head, ...]:
    """Heads of columns of text."""
    return tuple(Head(text, numeric=False) for text in texts)


def numbers(*texts: str) -> tuple[Head, ...]:
    """Heads of columns of numbers."""
    return tuple(Head(text) for text in texts)
