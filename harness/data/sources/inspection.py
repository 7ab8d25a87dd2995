"""What a data set is, asked before anything runs: its fingerprint, its samples, and what was left out and why.

Imports nothing heavy until data has to be read, so that `plan` and `status` stay fast.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.base.errors import DataError
from harness.base.files import read_json, write_json
from harness.config.data import READING_FIELDS, Data, EmbeddedWorld, FileData, FileSpec, unknown_data
from harness.data.sources.files import FilesOf, caption_files
from harness.data.sources.formats import common_folder, file_formats
from harness.data.sources.patterns import beside
from harness.runs.record import DataReport, reasons
from harness.runs.versions import unreadable

_VERSION = 3
REPORT = "report.json"
"""What an index says of its data; an index without it is built."""
UNPACKED = "images-*"
"""The embedded images of tables, once written to plain files."""


class Indexed(NamedTuple):
    """An index on disk and what it says."""

    folder: Path
    """Where index.arrow and rows.npy lie."""
    root: Path
    """The folder that the index's locations are relative to."""
    report: DataReport
    sources: tuple[str, ...]
    """Pseudo-caption sources that the samples have."""
    joined: dict[str, Any]
    """For each source in files of its own, how it joined."""
    files: FilesOf
    """What was read."""
    keys_repeat: bool
    """Whether several shards have samples of one key."""
    unpacked: bool
    """Whether images that tables embed were written to plain files in `folder`."""


def inspect_data(data: Data, cache: Path) -> DataReport:
    """The fingerprint and size of `data`.

    The fingerprint is a hash of content (keys, image sizes with their first and last bytes, captions, in order), so
    moving or repacking shards keeps it and changing a caption does not. That of an embedded set is a hash of its spec:
    nothing is generated. The first call reads all shards once; its index lies under `cache` and is used again as
    long as names, sizes and times of the files stay.

    Raises:
        DataError: data is missing or damaged, or holds too few usable samples.
        StoreError: `cache` cannot be written.
    """
    match data:
        case EmbeddedWorld():
            content = json.dumps([data.science(), data.algorithm], sort_keys=True)
            return DataReport(fingerprint=hashlib.sha256(content.encode()).hexdigest(), samples=data.size())
        case FileSpec():
            report = indexed(data, cache).report
            _check_share(data, report)
            return report
        case _:
            raise unknown_data(data)


def indexed(data: FileData, cache: Path) -> Indexed:
    """The index of `data`, built unless it is there. Raises as `inspect_data`."""
    files = FilesOf.find(data, cache)
    folder = cache / f"index-{_state(data, files)}"
    if not _is_current(folder / REPORT, files.root):
        _build(data, files, folder)
    stored = read_json(folder / REPORT)
    unpacked = any(folder.glob(UNPACKED))
    root = folder if unpacked else files.root
    try:
        report = DataReport.model_validate(stored["report"])
    except ValidationError as error:
        raise unreadable(error, folder / REPORT, "delete its folder: the data is read again") from None
    sources = tuple(stored["sources"])
    return Indexed(folder, root, report, sources, stored["joined"], files, stored["keys_repeat"], unpacked)


def _check_share(data: FileData, report: DataReport) -> None:
    """Refuse data of which too little can be used; what was quarantined was left out on purpose."""
    left_out = {reason: count for reason, count in report.rejected.items() if "quarantined" not in reason}
    whole = report.samples + sum(left_out.values())
    if report.samples < data.least_share * whole:
        what = f"only {report.samples:,} of {whole:,} samples can be used (left out: {reasons(left_out)})"
        share = math.floor(100 * report.samples / whole) / 100
        fix = f"repair the data, or accept it with data.least_share = {share:g}"
        if "duplicate key" in left_out and "repeats" in type(data).model_fields:
            fix += ', or state what rows of one image are: data.repeats = "captions" or "samples"'
        raise DataError(what, where=data.location, fix=fix)


def _build(data: FileData, files: FilesOf, folder: Path) -> None:
    # Reading data needs numpy, Arrow and Pillow; asking for what is known does not.
    from harness.data.dataset import index, index_parts
    from harness.data.sources.reading import Reading

    reading = Reading.begin(data, files, folder)
    summary = index_parts.build(folder, reading)
    if summary is None:
        summary = index.build(folder, reading.candidates(), sorted(data.pseudo), data.verify, data.pictures)
    if summary.samples == 0:
        fix = "check data.raw, data.pseudo and the files"
        raise DataError(_nothing(summary.rejected), where=data.location, fix=fix)
    reading.check_joins()
    report = DataReport(
        fingerprint=summary.fingerprint,
        samples=summary.samples,
        rejected=summary.rejected,
        skipped=summary.skipped,
        notes=(*beside(data.location, file_formats(data).suffixes), *reading.notes(), *summary.notes),
    )
    suspects = {location: _stamp(files.root / location) for location in summary.suspects}
    write_json(
        folder / REPORT,
        {
            "report": report.model_dump(mode="json"),
            "sources": list(summary.sources),
            "keys_repeat": summary.keys_repeat,
            "suspects": suspects,
            "unpacked": any(folder.glob(UNPACKED)),
            "joined": reading.joined(),
        },
    )


def _nothing(rejected: dict[str, int]) -> str:
    return f"holds no usable sample ({reasons(rejected) or 'it is empty'})"


def _state(data: FileData, files: FilesOf) -> str:
    """A hash of the spec and the files' names, sizes and times, wherever they lie."""
    base = common_folder(files.main)
    state = [
        _VERSION,
        data.algorithm,
        data.science(defaults=True),
        [getattr(data, name, None) for name in READING_FIELDS],
        os.path.relpath(files.root, base) if file_formats(data).names_root else "",
        [(os.path.relpath(file, base), *_size_and_time(file)) for file in files.main],
    ]
    if files.captions:
        checks = {name: [source.raw, source.min_coverage] for name, source in caption_files(data).items()}
        beside = {
            name: [(file.name, *_size_and_time(file)) for file in [*found, *([rows] if rows else [])]]
            for name, (found, rows) in files.captions.items()
        }
        state += [checks, beside]
    if data.quarantine is not None:
        if not Path(data.quarantine).is_file():
            fix = "`harness data check SPEC` writes it; leave data.quarantine out until then"
            raise DataError("the quarantine list is missing", where=data.quarantine, fix=fix)
        state.append([Path(data.quarantine).name, *_size_and_time(Path(data.quarantine))])
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _size_and_time(file: Path) -> tuple[int, int]:
    if file.is_dir():  # img2dataset's `files` layout
        found = [entry.stat() for entry in os.scandir(file)]
        return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _is_current(report: Path, root: Path) -> bool:
    """Whether the index is there and no file that spoiled a sample was repaired since."""
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
