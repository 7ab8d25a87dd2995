"""How each kind of file data is found and read. The readers themselves are imported when data is read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.base.errors import DataError
from harness.base.registry import Registry
from harness.config.data import TableData, WebdatasetData
from harness.data.sources.patterns import expand
from harness.data.sources.remote import is_url, mirrored

if TYPE_CHECKING:
    from harness.data.sources.quarantine import Quarantine
    from harness.data.sources.raw_samples import RawSample, Rejected
    from harness.data.sources.sidecars import Joined


@dataclass(frozen=True)
class ReadOptions:
    """What samples are read with, besides the data's own fields."""

    root: Path
    """What locations in the index are relative to."""
    joins: Mapping[str, Joined]
    """Captions of the sources that are in files of their own."""
    quarantine: Quarantine
    """Samples to leave out."""
    unpack: Path | None
    """The folder that embedded images are written to, for a format that cannot read them in place."""


class FileFormat(ABC):
    """One kind of file data: an object for each data spec."""

    in_shards: ClassVar[bool]
    """Samples are in shards: a quarantine names the shard, and img2dataset's statistics are beside it."""
    names_root: ClassVar[bool]
    """Where the root is, relative to the files, decides which images are read."""

    @abstractmethod
    def find(self, cache: Path) -> tuple[list[Path], Path]:
        """The files of the samples, and the root of their locations; those at URLs are the copies in `cache`.

        Raises:
            DataError: one is missing.
        """

    @abstractmethod
    def raw_samples(self, files: list[Path], options: ReadOptions) -> Iterator[RawSample | Rejected]:
        """The samples of `files` in order; for each that cannot be used, the reason.

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

    def __init__(self, data: WebdatasetData) -> None:
        self._data = data

    def find(self, cache: Path) -> tuple[list[Path], Path]:
        """The shards, and the folder that holds them all."""
        shards = located(self._data.shards, cache, "data.shards", (".tar",))
        return shards, common_folder(shards)

    def raw_samples(self, files: list[Path], options: ReadOptions) -> Iterator[RawSample | Rejected]:
        """Neighbours in the shards whose names agree."""
        from harness.data.sources import shards

        return shards.raw_samples(self._data, files, options.root, options.joins, options.quarantine)


@file_formats.register(TableData)
class TableFormat(FileFormat):
    """CSV, TSV and Parquet tables."""

    in_shards = False
    names_root = True

    def __init__(self, data: TableData) -> None:
        self._data = data

    def find(self, cache: Path) -> tuple[list[Path], Path]:
        """The tables, and the folder that image paths are relative to."""
        return self._tables(cache), self._image_root(cache)

    def raw_samples(self, files: list[Path], options: ReadOptions) -> Iterator[RawSample | Rejected]:
        """The rows."""
        from harness.data.sources import tables

        return tables.raw_samples(self._data, files, options.root, options.joins, options.quarantine, options.unpack)

    def _tables(self, cache: Path) -> list[Path]:
        path = self._data.path
        if is_url(path):
            return mirrored(path, cache)
        try:
            return expand(path, "data.path", (".parquet",))
        except DataError:
            raise DataError("table is missing", where=path, fix="correct data.path") from None

    def _image_root(self, cache: Path) -> Path:
        data = self._data
        if data.image_root is None and is_url(data.path):
            return mirrored(data.path, cache)[0].parent
        return Path(os.path.abspath(data.image_root or Path(data.path).parent))


def located(pattern: str, cache: Path, key: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The local files of a path or URL pattern; of a folder, those with one of `suffixes`.

    Raises:
        DataError: nothing matches, a file is missing, or a URL has not been fetched.
    """
    return mirrored(pattern, cache) if is_url(pattern) else expand(pattern, key, suffixes)


def common_folder(files: list[Path]) -> Path:
    """The deepest folder that holds all of `files`."""
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
