"""What the samples of a file are read with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.data.sources.quarantine import Quarantine
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
    names: Mapping[Path, str]
    """What the rows of a table are named by, for each file of the data set."""
    unpack: Path | None
    """The folder that embedded images are written to, for a format that cannot read them in place."""
