"""The manifest of a data set: its files, which samples survived, why others did not, and a digest of each part."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.base.files import read_text
from harness.config.data import FileData
from harness.data.dataset.dataset import sound_index
from harness.data.dataset.index import DIGESTS, INDEX, ROWS
from harness.data.sources import arrow
from harness.data.sources.formats import file_formats
from harness.data.sources.inspection import Indexed

VERSION = 1
_STATS = "_stats.json"
_COUNTS = ("count", "successes", "failed_to_download", "failed_to_resize")


def manifest(data: FileData, cache: Path) -> dict[str, Any]:
    """What `data` consists of, as JSON data; equal data in another place gives an equal manifest but for paths.

    A shard's digest is over the content of its samples in order (keys, images' size and ends, captions), so it tells
    whether two copies hold the same samples, and not how they are packed.

    Raises:
        DataError: data is missing or damaged, or holds no usable sample.
    """
    found = sound_index(data, cache)
    report = found.report
    return {
        "version": VERSION,
        "kind": data.kind,
        "fingerprint": report.fingerprint,
        "samples": report.samples,
        "rejected": report.rejected,
        "survivors": _share(report.samples, report.samples + sum(report.rejected.values())),
        "bytes": sum(file.stat().st_size for file in found.files.main),
        "images": _images(found),
        "sources": _sources(found),
        "downloads": _downloads(found) if file_formats(data).in_shards else None,
        "spec": data.science(defaults=True),
        "files": _files(found),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _columns(found: Indexed, names: list[str]) -> dict[str, Any]:
    """Columns of the index at the rows that survived."""
    rows = arrow.integers(np.load(found.folder / ROWS))
    with pa.memory_map(str(found.folder / INDEX)) as mapped:
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return {
            name: pa.chunked_array([batch.column(name) for batch in batches]).take(rows).combine_chunks()
            for name in names
        }


def _images(found: Indexed) -> dict[str, Any]:
    columns = _columns(found, ["width", "height", "size"])
    short = np.minimum(arrow.numbers(columns["width"]), arrow.numbers(columns["height"]))
    at = [0, 5, 50, 95, 100]
    return {
        "bytes": int(arrow.numbers(columns["size"]).sum()),
        "shorter_side_px": {f"p{level}": float(np.percentile(short, level)) for level in at},
    }


def _sources(found: Indexed) -> dict[str, Any]:
    """By source, captions per sample, and for files of their own how they joined."""
    told: dict[str, Any] = {}
    for name in found.sources:
        lists = _columns(found, [f"pseudo:{name}"])[f"pseudo:{name}"]
        counts = np.diff(
            np.frombuffer(lists.buffers()[1], dtype=np.int64, count=len(lists) + 1, offset=8 * lists.offset)
        )
        told[name] = {"captions": int(counts.sum()), "fewest": int(counts.min()), "most": int(counts.max())}
    for name, account in found.joined.items():
        coverage = {"coverage": _share(account["covered"], account["samples"])}
        told[name] = told.get(name, {}) | coverage | {"joined": account}
    return told


def _files(found: Indexed) -> list[dict[str, Any]]:
    """Every shard or table with its size, and where images lie in it, the samples of it that survived."""
    held = _held(found)
    told = []
    for number, file in enumerate(found.files.main):
        name = f"images-{number:05d}" if found.unpacked else _relative(file, found)
        entry: dict[str, Any] = {"name": file.name, "bytes": file.stat().st_size}
        if file.suffix == ".tar" or found.unpacked:
            samples, digest = held.get(name, (0, ""))
            entry |= {"samples": samples, "digest": digest}
        told.append(entry)
    return told


def _held(found: Indexed) -> dict[str, tuple[int, str]]:
    """Samples and their digest by location."""
    coded = _columns(found, ["location"])["location"].dictionary_encode()
    codes = np.frombuffer(coded.indices.buffers()[1], dtype=np.int32, count=len(coded))
    digests = np.load(found.folder / DIGESTS)
    borders = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(codes)]
    names = coded.dictionary.to_pylist()
    return {
        str(names[codes[first]]): (last - first, hashlib.sha256(digests[first:last].tobytes()).hexdigest()[:16])
        for first, last in pairwise(borders)
    }


def _relative(file: Path, found: Indexed) -> str:
    root = found.files.root
    return str(file.absolute().relative_to(root)) if file.absolute().is_relative_to(root) else file.name


def _downloads(found: Indexed) -> dict[str, Any] | None:
    """What img2dataset says of its downloads in NAME_stats.json beside each shard, added up; None where it is not.

    A file that cannot be read counts as missing: `shards_with_stats` says how many were read.
    """
    totals, reasons = Counter[str](), Counter[str]()
    there = 0
    for file in found.files.main:
        beside = file.with_name(file.stem + _STATS)
        try:
            stats = json.loads(read_text(beside))
            counts = {name: int(stats.get(name, 0)) for name in _COUNTS}
            statuses = [(str(reason)[:80], int(count)) for reason, count in dict(stats.get("status_dict", {})).items()]
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        totals.update(counts)
        for reason, count in statuses:
            reasons[reason] += count
        there += 1
    if not there:
        return None
    most = dict(sorted(reasons.items(), key=lambda item: -item[1])[:20])
    survivors = _share(totals["successes"], totals["count"])
    return {"shards_with_stats": there, **totals, "survivors": survivors, "status": most}
