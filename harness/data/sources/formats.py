"""How each kind of file data is found and read. The readers themselves are imported when data is read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.base.errors import DataError
from harness.base.registry import Registry
from harness.config.data import TableData, WebdatasetData
from harness.data.sources.patterns import expand, of_split
from harness.data.sources.remote import is_url, mirrored

if TYPE_CHECKING:
    from harness.data.sources.options import ReadOptions
    from harness.data.sources.raw_samples import Candidate


class FileFormat(ABC):
    """One kind of file data: an object for each data spec."""

    in_shards: ClassVar[bool]
    """Samples are in shards: a quarantine names the shard, and img2dataset's statistics are beside it."""
    names_root: ClassVar[bool]
    """Where the root is, relative to the files, decides which images are read."""
    suffixes: ClassVar[tuple[str, ...]]
    """Of the files that a folder stands for."""

    @abstractmethod
    def find(self, cache: Path) -> tuple[list[Path], Path]:
        """The files of the samples, and the root of their locations; those at URLs are the copies in `cache`.

        Raises:
            DataError: one is missing.
        """

    @abstractmethod
    def raw_samples(self, files: list[Path], options: ReadOptions) -> Iterator[Candidate]:
        """The samples of `files` in order; for each that cannot be used, the reason; and what is passed over.

        Raises:
            DataError: a file is missing or damaged.
        """


file_formats: Registry[[], FileFormat] = Registry("data")
"""The format of each file spec."""


@file_formats.register(WebdatasetData)
class WebdatasetFormat(FileFormat):
    """Tar shards."""

    in_shards = True
    names_root = False
    suffixes = (".tar",)

    def __init__(self, data: WebdatasetData) -> None:
        self._data = data

    def find(self, cache: Path) -> tuple[list[Path], Path]:
        """The shards, and the folder that holds them all."""
        pattern = self._data.shards
        shards = located(pattern, cache, "data.shards", self.suffixes)
        shards = of_split(shards, self._data.split, pattern, "data.shards")
        return shards, common_folder(shards)

    def raw_samples(self, files: list[Path], options: ReadOptions) -> Iterator[Candidate]:
        """Neighbours in the shards whose names agree."""
        from harness.data.sources import shards

        return shards.raw_samples(self._data, files, options)


@file_formats.register(TableData)
class TableFormat(FileFormat):
    """CSV, TSV and Parquet tables."""

    in_shards = False
    names_root = True
    suffixes = (".parquet",)

    def __init__(self, data: TableData) -> None:
        self._data = data

    def find(self, cache: Path) -> tuple[list[Path], Path]:
        """The tables, and the folder that image paths are relative to."""
        tables = of_split(self._tables(cache), self._data.split, self._data.path, "data.path")
        return tables, self._image_root(cache)

    def raw_samples(self, files: list[Path], options: ReadOptions) -> Iterator[Candidate]:
        """The rows."""
        from harness.data.sources import tables

        return tables.raw_samples(self._data, files, options)

    def _tables(self, cache: Path) -> list[Path]:
        path = self._data.path
        if is_url(path):
            return mirrored(path, cache)
        try:
            return expand(path, "data.path", self.suffixes)
        except DataError:
            raise DataError("table is missing", where=path, fix="correct data.path") from None

    def _image_root(self, cache: Path) -> Path:
        data = self._data
        if data.image_root is None and is_url(data.path):
            return mirrored(data.path, cache)[0].parent
        return Path(os.path.abspath(data.image_root or Path(data.path.split("::")[0]).parent))


def located(pattern: str, cache: Path, key: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The local files of a path or URL pattern; of a folder, those with one of `suffixes`.

    Raises:
        DataError: nothing matches, a file is missing, or a URL has not been fetched.
    """
    return mirrored(pattern, cache) if is_url(pattern) else expand(pattern, key, suffixes)


def common_folder(files: list[Path]) -> Path:
    """The deepest folder that holds all of `files`."""
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
