"""Captions a data set part by part. Each part is written atomically, so a kill neither loses nor duplicates one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from harness.base.errors import DataError
from harness.base.files import read_json, replacing, write_json
from harness.base.locks import exclusive
from harness.captioning.models import CaptionModel
from harness.config.captioner import ImageCaptioner
from harness.data.dataset.dataset import Dataset
from harness.data.sources.caption_folder import SETTINGS, part_file
from harness.runs.versions import check_version

VERSION = 1
"""Version of the folder's layout. Folders without a version have version 1."""
PART = 512
"""Samples per part: the most that a kill can lose."""
_SCHEMA = pa.schema([("key", pa.string()), ("captions", pa.list_(pa.string())), ("raw", pa.string())])


@dataclass(frozen=True)
class CaptionFolder:
    """Output folder for the captions of one data set by one captioner."""

    path: Path
    settings: ImageCaptioner
    dataset: Dataset

    @property
    def parts(self) -> int:
        """Total number of parts."""
        return -(-len(self.dataset) // PART)

    def begin(self) -> None:
        """Write the settings into the folder, or check that they match those already there.

        Raises:
            DataError: it holds captions of other data or by other settings.
            StoreError: it cannot be written, or a newer harness has begun it.
        """
        stated: dict[str, Any] = {
            "captioner": _stated(self.settings),
            "data": self.dataset.report.fingerprint,
            "samples": len(self.dataset),
            "parts": self.parts,
            "part": PART,
        }
        with exclusive(self.path / ".lock", wait=True):
            if not (self.path / SETTINGS).exists():
                write_json(self.path / SETTINGS, stated | {"version": VERSION})
                return
            there = read_json(self.path / SETTINGS)
        if isinstance(there, dict):
            check_version(there, VERSION, self.path / SETTINGS)
        different = [name for name in stated if not isinstance(there, dict) or there.get(name) != stated[name]]
        if different:
            what = f"holds captions made with a different {', '.join(different)}"
            raise DataError(what, where=str(self.path), fix="name another folder with --out, or delete this one")

    def missing(self, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Parts that shard I of N still has to write."""
        number, total = shard
        parts = range(number, self.parts, total)
        return [part for part in parts if not part_file(self.path, part).exists()]


def caption(
    folder: CaptionFolder, captioner: CaptionModel, shard: tuple[int, int], said: Callable[[str], None]
) -> tuple[int, int]:
    """Write the missing parts of one shard.

    Returns:
        How many samples were captioned now, and how many of them have no caption as their image is damaged or the
        model said nothing.

    Raises:
        StoreError: the folder cannot be written.
    """
    done = empty = 0
    for part in folder.missing(shard):
        rows = _part(folder, captioner, part)
        with replacing(part_file(folder.path, part)) as aside:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows, _SCHEMA), aside)
        done += len(rows)
        empty += sum(not any(row["captions"]) for row in rows)
        said(f"part {part + 1} of {folder.parts}: {done:,} samples")
    return done, empty


def _stated(settings: ImageCaptioner) -> dict[str, Any]:
    """The settings as a folder keeps them. Folders of versions without `config` lack it."""
    return settings.model_dump(mode="json", exclude={"config"} if settings.config is None else None)


def _part(folder: CaptionFolder, captioner: CaptionModel, part: int) -> list[dict[str, Any]]:
    samples = range(part * PART, min((part + 1) * PART, len(folder.dataset)))
    size = folder.settings.batch_size
    return [row for start in samples[::size] for row in _batch(folder, captioner, samples, start)]


def _batch(folder: CaptionFolder, captioner: CaptionModel, samples: range, start: int) -> list[dict[str, Any]]:
    """The samples of a batch from `start`. The choice and the seed depend only on data and settings."""
    batch = range(start, min(start + folder.settings.batch_size, samples.stop))
    keys, images, told = folder.dataset.keys_of(batch), [], []
    for sample in batch:
        try:
            images.append(folder.dataset.image(sample))
            told.append(sample)
        except DataError:  # damage that no header shows; the sample gets no captions and is counted
            continue
    texts = captioner.captions(images, _seed(folder.settings.seed, keys[0])) if images else []
    by_sample = dict(zip(told, texts, strict=True))
    return [
        {"key": key, "captions": by_sample.get(sample, []), "raw": folder.dataset.raw(sample)}
        for key, sample in zip(keys, batch, strict=True)
    ]


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=7).digest(), "little")
