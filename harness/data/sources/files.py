"""The files that a data set is read from: shards, tables, and the caption files beside them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harness.config.data import FileData
from harness.config.sources import CaptionFile
from harness.data.sources.caption_folder import check_finished
from harness.data.sources.formats import file_formats, located

_CAPTION_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt", ".tar")


class FilesOf(NamedTuple):
    """The files that a data set is read from."""

    main: list[Path]
    """Shards, or tables."""
    captions: dict[str, tuple[list[Path], Path | None]]
    """By source: files of captions, and the table that text lines are aligned with."""
    root: Path
    """What locations in the index are relative to."""

    @classmethod
    def find(cls, data: FileData, cache: Path) -> FilesOf:
        """The files of `data`; those at URLs are the copies in `cache`.

        Raises:
            DataError: one is missing.
        """
        captions = {name: files_of_source(source, cache) for name, source in caption_files(data).items()}
        main, root = file_formats(data).find(cache)
        return cls(main, captions, root)

    def all(self) -> list[Path]:
        """Every file."""
        beside = [file for files, rows in self.captions.values() for file in [*files, *([rows] if rows else [])]]
        return [*self.main, *beside]


def caption_files(data: FileData) -> dict[str, CaptionFile]:
    """The sources of `data` that stand in files of their own."""
    return {name: source for name, source in data.pseudo.items() if isinstance(source, CaptionFile)}


def files_of_source(source: CaptionFile, cache: Path) -> tuple[list[Path], Path | None]:
    """The files of a source, and the table that its text lines are aligned with.

    Raises:
        DataError: they are missing, or still being made.
    """
    rows = located(source.rows, cache, "rows", ())[0] if source.rows else None
    check_finished(Path(source.path))
    return located(source.path, cache, "path", _CAPTION_SUFFIXES), rows
