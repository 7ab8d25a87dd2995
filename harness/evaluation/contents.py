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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import DataError
from harness.base.log import say
from harness.evaluation.conditions import Contents, Samples
from harness.evaluation.layout import TRAIN, VALIDATION, Layout, describe
from harness.runs.identity import digest
from harness.runs.kept import keep, kept

SETTLED_S = 10.0
"""How long files must have been left alone before what they contain is remembered."""
SHOWN = 3
"""Class names or templates that a message about a changed version lists."""
Stamps = list[list[Any]]


def contents_at(path: Path, name: str, split: str, store: Path, *, probe: bool = False) -> Contents:
    """The contents of the set at `path`.

    Args:
        name: what the set is called.
        split: the part that is measured.
        store: folder in which what files contain is kept.
        probe: whether a linear probe learns from its other parts.

    Raises:
        DataError: the set is not complete, damaged, or not what its version was before.
    """
    layout = describe(path, name, split)
    samples = _samples(layout, store)
    check_version(layout, samples, store)
    if not probe:
        return Contents(layout, samples)
    parts = [TRAIN] + [VALIDATION] * (layout.path / VALIDATION / "nshards.txt").is_file()
    return Contents(layout, samples, {part: _samples(describe(path, name, part), store) for part in parts})


def known_contents(path: Path, name: str, split: str, store: Path, *, probe: bool = False) -> Contents | None:
    """As `contents_at`, without reading samples: None if what the files contain is not kept.

    Raises:
        DataError: as `contents_at`.
    """
    layout = describe(path, name, split)
    parts = [TRAIN] + [VALIDATION] * (layout.path / VALIDATION / "nshards.txt").is_file() if probe else []
    layouts = [layout, *(describe(path, name, part) for part in parts)]
    if any(_known(one, store, stamps(one)) is None for one in layouts):
        return None
    return contents_at(path, name, split, store, probe=probe)


def remember(layout: Layout, samples: Samples, before: Stamps, read_at: float, store: Path) -> None:
    """Keep what the files of a set contain, where nothing can have changed since `before`.

    Args:
        before: `stamps` of the set before it was read.
        read_at: Unix time at which `before` was taken.
    """
    newest = max(max(modified, changed) for _, _, _, modified, changed in before) / 1e9
    if stamps(layout) != before or newest > read_at - SETTLED_S:
        return
    keep(_file(layout, store), {"files": before, "count": samples.count, "sha256": samples.sha256})


def check_version(layout: Layout, samples: Samples, store: Path) -> None:
    """Keep what the version of a declared set contains, and refuse other contents under the same name and version.

    Raises:
        DataError: the version had other class names, templates or samples; the message has the differences.
    """
    if layout.declared is None:
        return
    name, now = layout.declared.stem, _versioned(layout, samples)
    file = store / "versions" / f"{digest([name, layout.version, layout.split], 32)}.json"
    before = _known_version(file, name)
    if before is None:
        keep(file, now)
    elif before != now:
        what = f"version {layout.version!r} of {name} has changed: {'; '.join(_changes(before, now))}"
        raise DataError(what, where=f"{layout.declared}: version", fix="write another version, or restore the set")


def _versioned(layout: Layout, samples: Samples) -> dict[str, Any]:
    return {
        "task": layout.task,
        "classnames": list(layout.classnames),
        "templates": list(layout.templates),
        "samples": samples.said(),
    }


def _known_version(file: Path, name: str) -> dict[str, Any] | None:
    try:
        return kept(file)
    except ValueError:
        say(f"{file} is damaged: what the version of {name} was before is not known")
        return None


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What differs between two contents, a part of a sentence each."""
    if before["task"] != now["task"]:
        yield f"task {before['task']} -> {now['task']}"
    for part, said in (("classnames", "class names"), ("templates", "templates")):
        if before[part] != now[part]:
            lines = [f"-{_few(gone)}"] if (gone := [one for one in before[part] if one not in now[part]]) else []
            lines += [f"+{_few(new)}"] if (new := [one for one in now[part] if one not in before[part]]) else []
            yield f"{said} {' '.join(lines) or 'in another order'}"
    if before["samples"]["count"] != now["samples"]["count"]:
        yield f"samples {before['samples']['count']:,} -> {now['samples']['count']:,}"
    elif before["samples"] != now["samples"]:
        yield "other keys, images, labels or captions"


def _few(texts: Sequence[str]) -> str:
    rest = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(map(repr, texts[:SHOWN])) + rest


def stamps(layout: Layout) -> Stamps:
    """The state of every file that the samples of a set depend on: name, size, inode, both times in ns."""
    return [_stamp(file, layout.path) for file in _files(layout) if file.exists()]


def _samples(layout: Layout, store: Path) -> Samples:
    before, read_at = stamps(layout), time.time()
    if (known := _known(layout, store, before)) is not None:
        return known
    # numpy and Pillow are only needed to read images
    from harness.evaluation.sets import read_set

    samples = read_set(layout.declared or layout.path, layout.name, layout.split).samples
    remember(layout, samples, before, read_at, store)
    return samples


def _known(layout: Layout, store: Path, now: Stamps) -> Samples | None:
    try:
        if (known := kept(_file(layout, store))) is None or known["files"] != now:
            return None
        return Samples(int(known["count"]), str(known["sha256"]))
    except (KeyError, TypeError, ValueError):
        say(f"{_file(layout, store)} is damaged: the evaluation set {layout.name} is read again")
        return None


def _file(layout: Layout, store: Path) -> Path:
    declared = [str(layout.declared.resolve())] if layout.declared else []
    key = digest([str(layout.path.resolve()), layout.split, layout.task, *declared], 32)
    return store / f"{key}.json"


def _files(layout: Layout) -> Iterable[Path]:
    beside = ("dataset_type.txt", "classnames.txt")
    declared = (layout.declared,) if layout.declared else ()
    texts = (layout.path / name for name in beside)
    return (*layout.shards, layout.path / layout.split / "nshards.txt", *texts, *declared)


def _stamp(file: Path, root: Path) -> list[Any]:
    status = os.stat(file)
    place = os.path.relpath(file, root)  # images of a pair task may lie beside its annotations
    return [place, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
