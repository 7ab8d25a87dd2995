"""Location of pseudo-captions for the user's own data: inside the shards or the table, or in separate files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, field_validator

from harness.config.base import Spec

PLACE = r"^[A-Za-z0-9_.]+(:.+)?$"

Split = Literal["none", "sentences", "lines"]
"""How to split a long text: one caption, one per sentence, or one per line."""

Columns = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""One column, or several whose captions are combined."""


class SplitPlace(Spec):
    """Captions inside the shards, stored as one long text."""

    place: str = Field(pattern=PLACE)
    """`json:KEY`, or the extension of a text member."""
    split: Split = "sentences"
    """`sentences` ends a caption at each `.`, `!` or `?` before a space, `lines` at each line."""


class SplitColumns(Spec):
    """Captions in the table itself, stored as one long text."""

    columns: Columns
    """Column or columns with the text."""
    split: Split = "sentences"
    """`sentences` ends a caption at each `.`, `!` or `?` before a space, `lines` at each line."""


class CaptionFile(Spec):
    """Captions in separate files, joined to the samples by an id that both have, never by row number alone.

    Downloads fail, so the tenth row of a caption file need not be the tenth sample. A sample takes the captions of the
    first row with its id. Rows that match no sample are counted. Too few matches, or raw captions that differ, are an
    error.
    """

    path: str
    """A `.parquet`, `.jsonl`, `.csv` or `.tsv` table, a text file with one caption per line (`.txt`, with `rows`), or a
    tar file with members KEY.EXT; or a folder of these, a glob, or a brace pattern. Relative to the spec file."""
    id: str = "key"
    """Column with the id in the files (for text files: in `rows`). In tar files the id is always the member's key."""
    join: str = Field("key", pattern=r"^(key|[A-Za-z0-9_.]+:.+|[^:]+)$")
    """The sample's value to look up: its `key`, a JSON value (`json:url`), or a column of the data's own table."""
    captions: Columns = ("captions",)
    """Columns with captions, each a text or a list of texts. In tar files: places like `syn.json:syn_text` or `txt`."""
    split: Split = "none"
    """How to split a long text: not at all, into `sentences` or into `lines`."""
    rows: str | None = None
    """For text files: the table whose row n belongs to line n. Different line counts are an error."""
    raw: str | None = None
    """Column that repeats the raw caption. If it differs for more than one joined sample in ten, the files belong to
    other data, which is an error."""
    min_coverage: float = Field(0.5, ge=0, le=1)
    """Smallest share of samples that must find captions here. A lower share is an error, because the ids are then
    probably of another kind."""

    def irrelevant(self) -> frozenset[str]:
        """Paths and checks. The captions themselves are in the data's fingerprint."""
        return frozenset(CAPTION_PATHS) | {"raw", "min_coverage"}

    @field_validator("captions")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"{', '.join(value)} repeats a column; name each once")
        return value


CAPTION_PATHS = ("path", "rows")
"""Fields of a CaptionFile that hold paths."""


def _sort(value: Any) -> str:
    if isinstance(value, CaptionFile) or (isinstance(value, dict) and "path" in value):
        return "file"
    return "split" if isinstance(value, dict | SplitPlace | SplitColumns) else "place"


PlaceSource = Annotated[
    Annotated[str, Tag("place")] | Annotated[SplitPlace, Tag("split")] | Annotated[CaptionFile, Tag("file")],
    Discriminator(_sort),
]
"""A place inside the shards, or separate files."""

ColumnSource = Annotated[
    Annotated[Columns, Tag("place")] | Annotated[SplitColumns, Tag("split")] | Annotated[CaptionFile, Tag("file")],
    Discriminator(_sort),
]
"""Columns of the table itself, or separate files."""
