"""What the files of an evaluation set contain, known without reading them again where nothing can have changed.

A shard is read once. What it contains is kept in the store beside the state of every file: size, inode, and both times
of change. The time of the last status change (ctime) makes this safe. Every write, rename and change of times sets it
to the file system's clock, and no call sets it back. So an edit that keeps the size and restores the modification time
is seen. Clocks are coarse: a state is kept only where every file had been left alone for SETTLED_S before it was read,
so that a change within one tick of the clock cannot pass. Do not change evaluation sets in place on a file system
whose ctime behaves otherwise (FAT, some FUSE mounts).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json
from harness.base.log import say
from harness.base.sums import make_room
from harness.evaluation.conditions import Contents, Samples
from harness.evaluation.layout import TRAIN, VALIDATION, Layout, describe
from harness.runs.identity import digest

SETTLED_S = 10.0
"""How long files must have been left alone before what they contain is remembered."""
Stamps = list[list[Any]]


def contents_at(path: Path, name: str, split: str, store: Path, *, probe: bool = False) -> Contents:
    """The contents of the set at `path`.

    Args:
        name: what the set is called.
        split: the part that is measured.
        store: folder in which what files contain is kept.
        probe: whether a linear probe learns from its other parts.

    Raises:
        DataError: the set is not complete, or damaged.
    """
    layout = describe(path, name, split)
    samples = _samples(layout, store)
    if not probe:
        return Contents(layout, samples)
    parts = [TRAIN] + [VALIDATION] * (path / VALIDATION / "nshards.txt").is_file()
    return Contents(layout, samples, {part: _samples(describe(path, name, part), store) for part in parts})


def remember(layout: Layout, samples: Samples, before: Stamps, read_at: float, store: Path) -> None:
    """Keep what the files of a set contain, where nothing can have changed since `before`.

    Args:
        before: `stamps` of the set before it was read.
        read_at: Unix time at which `before` was taken.
    """
    newest = max(max(modified, changed) for _, _, _, modified, changed in before) / 1e9
    if stamps(layout) != before or newest > read_at - SETTLED_S:
        return
    try:
        make_room(_file(layout, store))
        kept = {"files": before, "count": samples.count, "sha256": samples.sha256}
        write_json(_file(layout, store), kept | {"digest": digest([_file(layout, store).name, kept], 64)})
    except (StoreError, OSError):
        return  # a store that cannot be written to: the set is read again each time


def stamps(layout: Layout) -> Stamps:
    """The state of every file that the samples of a set depend on: name, size, inode, both times in ns."""
    return [_stamp(file, layout.path) for file in _files(layout) if file.exists()]


def _samples(layout: Layout, store: Path) -> Samples:
    before, read_at = stamps(layout), time.time()
    if (known := _known(layout, store, before)) is not None:
        return known
    # numpy and Pillow are only needed to read images
    from harness.evaluation.sets import read_set

    samples = read_set(layout.path, layout.name, layout.split).samples
    remember(layout, samples, before, read_at, store)
    return samples


def _known(layout: Layout, store: Path, now: Stamps) -> Samples | None:
    if not os.path.lexists(_file(layout, store)):
        return None
    try:
        kept = read_json(_file(layout, store))
        stated = kept.pop("digest")
        if stated != digest([_file(layout, store).name, kept], 64):
            raise ValueError("differs from its digest")
        return Samples(int(kept["count"]), str(kept["sha256"])) if kept["files"] == now else None
    except (AttributeError, StoreError, KeyError, TypeError, ValueError):
        say(f"{_file(layout, store)} is damaged: the evaluation set {layout.name} is read again")
        return None


def _file(layout: Layout, store: Path) -> Path:
    key = digest([str(layout.path.resolve()), layout.split, layout.task], 32)
    return store / f"{key}.json"


def _files(layout: Layout) -> Iterable[Path]:
    beside = ("dataset_type.txt", "classnames.txt")
    return (*layout.shards, layout.path / layout.split / "nshards.txt", *(layout.path / name for name in beside))


def _stamp(file: Path, root: Path) -> list[Any]:
    status = os.stat(file)
    place = os.path.relpath(file, root)  # images of a pair task may lie beside its annotations
    return [place, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
