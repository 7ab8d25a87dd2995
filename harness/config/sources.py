"""Where the pseudo-captions of one's own data stand: inside the shards or the table, or in files of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, field_validator

from harness.config.base import Spec

PLACE = r"^[A-Za-z0-9_.]+(:.+)?$"

Split = Literal["none", "sentences", "lines"]
"""What becomes of one long text: one caption, one for each sentence, one for each line."""

Columns = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""One column, or several whose captions are put together."""


class SplitPlace(Spec):
    """Captions inside the shards that are one long text."""

    place: str = Field(pattern=PLACE)
    """`json:KEY`, or the extension of a text member."""
    split: Split = "sentences"
    """`sentences` ends a caption at each `.`, `!` or `?` before a space, `lines` at each line."""


class SplitColumns(Spec):
    """Captions in the table itself that are one long text."""

    columns: Columns
    """Column or columns."""
    split: Split = "sentences"
    """`sentences` ends a caption at each `.`, `!` or `?` before a space, `lines` at each line."""


class CaptionFile(Spec):
    """Captions in files beside the data, joined to its samples by what both name: never by row number alone.

    Downloads fail, so the tenth row of somebody's captions is not the tenth sample. A sample takes the captions of the
    first row with its id. Rows that join nothing are counted; too few joins, or raw captions that differ, are refused.
    """

    path: str
    """A `.parquet`, `.jsonl`, `.csv` or `.tsv` table, a text file of one caption a line (`.txt`, with `rows`), or a
    tar file of members KEY.EXT; or a folder of them, a glob, a brace pattern. Relative to the spec file."""
    id: str = "key"
    """Column of the id in the files (in `rows`, for text files). In tar files the id is always the member's key."""
    join: str = Field("key", pattern=r"^(key|[A-Za-z0-9_.]+:.+|[^:]+)$")
    """What of a sample is looked up: its `key`, a json value (`json:url`), or a column of the data's own table."""
    captions: Columns = ("captions",)
    """Columns of captions, each a text or a list of texts. In tar files places like `syn.json:syn_text` or `txt`."""
    split: Split = "none"
    """What one long text is cut into: nothing, `sentences` or `lines`."""
    rows: str | None = None
    """For text files: the table whose row n belongs to line n. Line counts that differ are refused."""
    raw: str | None = None
    """Column that repeats the raw caption. Where more than one joined sample in ten has another one, the files belong
    to other data and are refused."""
    min_coverage: float = Field(0.5, ge=0, le=1)
    """Share of the samples that must find captions here; below it the ids are taken to be of another sort."""

    def irrelevant(self) -> frozenset[str]:
        """Places and checks: the captions themselves are in the data's fingerprint."""
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
"""A place inside the shards, or files beside them."""

ColumnSource = Annotated[
    Annotated[Columns, Tag("place")] | Annotated[SplitColumns, Tag("split")] | Annotated[CaptionFile, Tag("file")],
    Discriminator(_sort),
]
"""Columns of the table itself, or files beside it."""
