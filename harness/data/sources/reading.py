"""Reading a data set from its files: candidates for the index, with the captions that stand in files of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.data import FileData
from harness.data.sources.files import FilesOf, caption_files
from harness.data.sources.formats import common_folder, file_formats
from harness.data.sources.options import ReadOptions
from harness.data.sources.quarantine import Quarantine, read_quarantine
from harness.data.sources.raw_samples import Candidate
from harness.data.sources.sidecars import Joined


@dataclass(frozen=True)
class Reading:
    """One pass over a data set."""

    data: FileData
    files: FilesOf
    joins: dict[str, Joined]
    quarantine: Quarantine
    unpack: Path | None

    @classmethod
    def begin(cls, data: FileData, files: FilesOf, work: Path, *, unpack: bool = True) -> Reading:
        """Read the captions that stand in files of their own; what is made for it lies in `work`.

        Args:
            unpack: whether images embedded in tables are written to plain files in `work`.

        Raises:
            DataError: a caption file or the quarantine list cannot be used.
        """
        joins = {
            name: Joined(name, source, *files.captions[name], work=work) for name, source in caption_files(data).items()
        }
        return cls(data, files, joins, read_quarantine(data.quarantine), work if unpack else None)

    def candidates(self, files: list[Path] | None = None) -> Iterator[Candidate]:
        """The samples of all shards or tables, or of some of them."""
        chosen = self.files.main if files is None else files
        options = ReadOptions(self.files.root, self.joins, self.quarantine, row_names(self.files.main), self.unpack)
        return file_formats(self.data).raw_samples(chosen, options)

    def joined(self) -> dict[str, dict[str, Any]]:
        """How each source in files of its own joined."""
        return {name: join.account() for name, join in self.joins.items()}

    def notes(self) -> list[str]:
        """What was guessed while the sources in files of their own were read, a sentence each."""
        return [note for join in self.joins.values() for note in join.notes]

    def check_joins(self) -> None:
        """Refuse sources that joined badly.

        Raises:
            DataError: too few samples found captions, or the raw captions beside them are others.
        """
        for join in self.joins.values():
            join.check()


def row_names(files: list[Path]) -> dict[Path, str]:
    """What the rows of each table are named by: its name, with its folders where names repeat."""
    base = common_folder(files)
    repeated = len({file.stem for file in files}) < len(files)
    return {
        file: str(Path(os.path.relpath(file.absolute(), base)).with_suffix("")) if repeated else file.stem
        for file in files
    }
