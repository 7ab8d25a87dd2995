"""What a data set is, asked before anything runs: its fingerprint, its samples, and what was left out and why.

Imports nothing heavy until data has to be read, so that `plan` and `status` stay fast.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.base.errors import DataError, StoreError
from harness.base.files import read_json, write_json
from harness.base.log import say
from harness.base.sums import make_room
from harness.config.data import READING_FIELDS, Data, EmbeddedWorld, FileData, FileSpec, MixtureData, unknown_data
from harness.data.sources.files import FilesOf, caption_files
from harness.data.sources.formats import common_folder, file_formats
from harness.data.sources.patterns import beside
from harness.runs.identity import digest
from harness.runs.record import DataReport, SourceShare, reasons

_VERSION = 3
REPORT = "report.json"
"""What an index says of its data; an index without it is built."""
_STATED = frozenset({"report", "sources", "keys_repeat", "suspects", "joined"})
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
        case MixtureData():
            return _mixed(data, {name: inspect_data(one.data, cache) for name, one in data.sources.items()})
        case _:
            raise unknown_data(data)


def _mixed(data: MixtureData, reports: Mapping[str, DataReport]) -> DataReport:
    """The report of a mixture: what its sources are, and the share of each. Weights are part of its fingerprint."""
    from harness.data.proportions import Proportions

    weights = [one.weight for one in data.sources.values()]
    proportions = Proportions.of([one.samples for one in reports.values()], weights)
    content = [[name, report.fingerprint, data.sources[name].weight] for name, report in reports.items()]
    return DataReport(
        fingerprint=hashlib.sha256(json.dumps(["mixture", content]).encode()).hexdigest(),
        samples=proportions.epoch,
        sources={
            name: SourceShare(samples=report.samples, share=float(share))
            for (name, report), share in zip(reports.items(), proportions.shares, strict=True)
        },
        rejected={f"{name}: {why}": count for name, one in reports.items() for why, count in one.rejected.items()},
        skipped={f"{name}: {why}": count for name, one in reports.items() for why, count in one.skipped.items()},
        notes=tuple(f"{name}: {note}" for name, one in reports.items() for note in one.notes),
    )


def indexed(data: FileData, cache: Path) -> Indexed:
    """The index of `data`, built unless it is there. Raises as `inspect_data`."""
    files = FilesOf.find(data, cache)
    folder = cache / f"index-{_state(data, files)}"
    stored = _stored(folder / REPORT, files.root) or _build(data, files, folder)
    unpacked = any(folder.glob(UNPACKED))
    root = folder if unpacked else files.root
    report = DataReport.model_validate(stored["report"])
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


def _build(data: FileData, files: FilesOf, folder: Path) -> dict[str, Any]:
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
    stored = {
        "report": report.model_dump(mode="json"),
        "sources": list(summary.sources),
        "keys_repeat": summary.keys_repeat,
        "suspects": suspects,
        "unpacked": any(folder.glob(UNPACKED)),
        "joined": reading.joined(),
    }
    make_room(folder / REPORT)
    write_json(folder / REPORT, {**stored, "digest": digest([folder.name, stored])})
    return stored


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


def _stored(file: Path, root: Path) -> dict[str, Any] | None:
    """What an index says, unless it is missing or damaged, or a file that spoiled a sample was repaired since.

    An earlier version wrote no digest; such a file counts as sound if it can be read.
    """
    if not os.path.lexists(file):
        return None
    try:
        stored: dict[str, Any] = read_json(file)
        stated = stored.pop("digest", None)
        DataReport.model_validate(stored["report"])
        is_sound = stored.keys() >= _STATED and stated in (None, digest([file.parent.name, stored]))
        is_current = all(_stamp(root / location) == stamp for location, stamp in stored["suspects"].items())
    except (AttributeError, KeyError, StoreError, TypeError, ValidationError):
        is_sound = is_current = False
    if not is_sound:
        say(f"the index {file.parent} is damaged: the data is read again")
    return stored if is_sound and is_current else None


def _stamp(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except (OSError, ValueError):  # it is missing, or the location is no path: then it is read again
        return None
    return [stat.st_size, stat.st_mtime_ns]
