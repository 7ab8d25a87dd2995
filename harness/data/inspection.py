"""What a data set is, asked before anything runs: its fingerprint, its samples, and what was left out and why.

Imports nothing heavy until data has to be read, so that `plan` and `status` stay fast.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from harness.data.patterns import expand
from harness.errors import DataError
from harness.files import read_json, write_json
from harness.record import DataReport
from harness.spec.data import Data, DigitsData, ShapesData, TableData, WebdatasetData

_VERSION = 1
_REPORT = "report.json"


class Indexed(NamedTuple):
    """An index on disk and what it says."""

    folder: Path
    """Where index.arrow and rows.npy lie."""
    root: Path
    """The folder that the index's locations are relative to."""
    report: DataReport
    sources: tuple[str, ...]
    """Pseudo-caption sources that the samples have."""


def inspect_data(data: Data, cache: Path) -> DataReport:
    """The fingerprint and size of `data`.

    The fingerprint is a hash of content (keys, image sizes with their first and last bytes, captions, in order), so
    moving or repacking shards keeps it and changing a caption does not. That of an embedded set is a hash of its spec:
    nothing is generated. The first call reads all shards once; its index lies under `cache` and is used again as
    long as names, sizes and times of the files stay.

    Raises:
        DataError: data is missing or damaged, or holds no usable sample.
        StoreError: `cache` cannot be written.
    """
    match data:
        case ShapesData() | DigitsData():
            content = json.dumps([data.science(), data.algorithm], sort_keys=True)
            return DataReport(fingerprint=hashlib.sha256(content.encode()).hexdigest(), samples=data.train_samples)
        case WebdatasetData() | TableData():
            return indexed(data, cache).report


def indexed(data: WebdatasetData | TableData, cache: Path) -> Indexed:
    """The index of `data`, built unless it is there. Raises as `inspect_data`."""
    files = expand(data.shards) if isinstance(data, WebdatasetData) else [_table(data)]
    root = _common_folder(files) if isinstance(data, WebdatasetData) else _image_root(data)
    folder = cache / f"index-{_state(data, files)}"
    if not _is_current(folder / _REPORT, root):
        _build(data, files, root, folder)
    stored = read_json(folder / _REPORT)
    return Indexed(folder, root, DataReport.model_validate(stored["report"]), tuple(stored["sources"]))


def _build(data: WebdatasetData | TableData, files: list[Path], root: Path, folder: Path) -> None:
    # Reading data needs numpy, Arrow and Pillow; asking for what is known does not.
    from harness.data import index, shards, tables

    if isinstance(data, WebdatasetData):
        where, found = data.shards, shards.candidates(data, files, root)
    else:
        where, found = data.path, tables.candidates(data, root)
    summary = index.build(folder, found, sorted(data.pseudo), data.verify)
    if summary.samples == 0:
        raise DataError(_nothing(summary.rejected), where=where, fix="check data.raw, data.pseudo and the files")
    report = DataReport(fingerprint=summary.fingerprint, samples=summary.samples, rejected=summary.rejected)
    suspects = {location: _stamp(root / location) for location in summary.suspects}
    write_json(
        folder / _REPORT,
        {"report": report.model_dump(mode="json"), "sources": list(summary.sources), "suspects": suspects},
    )


def _nothing(rejected: dict[str, int]) -> str:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
    return f"holds no usable sample ({reasons or 'it is empty'})"


def _state(data: WebdatasetData | TableData, files: list[Path]) -> str:
    """A hash of the spec and the files' names, sizes and times, wherever they lie."""
    base = _common_folder(files)
    stats = [(os.path.relpath(file, base), file.stat()) for file in files]
    state = [
        _VERSION,
        data.algorithm,
        data.science(defaults=True),
        os.path.relpath(_image_root(data), base) if isinstance(data, TableData) else "",
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _common_folder(files: list[Path]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))


def _table(data: TableData) -> Path:
    file = Path(data.path)
    if not file.is_file():
        raise DataError("table is missing", where=data.path, fix="correct data.path")
    return file


def _image_root(data: TableData) -> Path:
    return Path(os.path.abspath(data.image_root or Path(data.path).parent))


def _is_current(report: Path, root: Path) -> bool:
    """Whether the index is there and no file that spoiled a sample was mended since."""
    if not report.is_file():
        return False
    suspects = read_json(report)["suspects"]
    return all(_stamp(root / location) == stamp for location, stamp in suspects.items())


def _stamp(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]
