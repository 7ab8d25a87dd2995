"""The files that a data set is read from: shards, tables, and the caption files beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import DataError
from harness.config.data import FileData, TableData, WebdatasetData
from harness.config.sources import CaptionFile
from harness.data.sources.caption_folder import check_finished
from harness.data.sources.patterns import expand
from harness.data.sources.remote import is_url, mirrored

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
        match data:
            case WebdatasetData():
                shards = located(data.shards, cache, "data.shards", (".tar",))
                return cls(shards, captions, common_folder(shards))
            case TableData():
                return cls(_tables(data, cache), captions, _image_root(data, cache))

    def all(self) -> list[Path]:
        """Every file."""
        beside = [file for files, rows in self.captions.values() for file in [*files, *([rows] if rows else [])]]
        return [*self.main, *beside]


def caption_files(data: FileData) -> dict[str, CaptionFile]:
    """The sources of `data` that stand in files of their own."""
    return {name: source for name, source in data.pseudo.items() if isinstance(source, CaptionFile)}


def located(pattern: str, cache: Path, key: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The local files of a path or URL pattern; of a folder, those with one of `suffixes`.

    Raises:
        DataError: nothing matches, a file is missing, or a URL has not been fetched.
    """
    return mirrored(pattern, cache) if is_url(pattern) else expand(pattern, key, suffixes)


def files_of_source(source: CaptionFile, cache: Path) -> tuple[list[Path], Path | None]:
    """The files of a source, and the table that its text lines are aligned with.

    Raises:
        DataError: they are missing, or still being made.
    """
    rows = located(source.rows, cache, "rows", ())[0] if source.rows else None
    check_finished(Path(source.path))
    return located(source.path, cache, "path", _CAPTION_SUFFIXES), rows


def _tables(data: TableData, cache: Path) -> list[Path]:
    if is_url(data.path):
        return mirrored(data.path, cache)
    try:
        return expand(data.path, "data.path", (".parquet",))
    except DataError:
        raise DataError("table is missing", where=data.path, fix="correct data.path") from None


def common_folder(files: list[Path]) -> Path:
    """The deepest folder that holds all of `files`."""
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))


def _image_root(data: TableData, cache: Path) -> Path:
    if data.image_root is None and is_url(data.path):
        return mirrored(data.path, cache)[0].parent
    return Path(os.path.abspath(data.image_root or Path(data.path).parent))
