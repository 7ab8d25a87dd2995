"""The store, the MLflow records, and the evaluation sets that settings name."""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.base.errors import DataError, HarnessError, TrackingError
from harness.base.files import MOST_TOML, read_text
from harness.doctor.finding import Finding
from harness.evaluation.layout import describe
from harness.tracking import probe, redacted
from harness.tracking.places import database_file

LITTLE_GB, NONE_GB = 5.0, 0.5
_NETWORKED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "fuse.sshfs", "9p", "ceph")


def store(root: Path) -> Iterator[Finding]:
    """Whether the store can be written and locked, and how much room is left. Leaves nothing behind."""
    folder = next(parent for parent in (root, *root.parents) if parent.exists())
    remedy = "set `store` in harness.toml to a folder that you can write"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe_file:
            try:
                fcntl.flock(probe_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                what = f"{folder} takes no file locks ({error.strerror}): two workers could write to one run"
                yield Finding(
                    "error", "store", what, "mount it with locks (Lustre: -o flock), or choose another folder"
                )
                return
    except OSError as error:
        yield Finding("error", "store", f"{root} cannot be written ({error.strerror})", remedy)
        return
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < NONE_GB:
        yield Finding("error", "store", f"{root}: {free_gb:.2f} GB are free", f"free space, or {remedy}")
    elif free_gb < LITTLE_GB:
        yield Finding("warning", "store", f"{root}: {free_gb:.1f} GB are free", f"free space, or {remedy}")
    else:
        yield Finding("ok", "store", f"{root}: {free_gb:.0f} GB are free")


def tracking(uri: str | None) -> Finding:
    """Whether MLflow's store or server can be used; runs do not need it."""
    if uri is None:
        return Finding("ok", "MLflow", "off")
    try:
        probe(uri)
        file = database_file(uri)
    except TrackingError as error:
        where = f"{error.where}: " if error.where else ""
        return Finding("warning", "MLflow", f"{where}{error.what}", error.fix or "")
    if file is not None and (kind := filesystem(file)) in _NETWORKED:
        what = f"{file} is an SQLite file on {kind}, whose locks are unreliable"
        return Finding("warning", "MLflow", what, "import from one machine only, or run a tracking server")
    return Finding("ok", "MLflow", redacted(uri) if file is None or file.exists() else f"{file} (created when needed)")


def evaluation_sets(root: Path | None) -> Iterator[Finding]:
    """The evaluation sets under `root`, and the problem of each that cannot be read."""
    if root is None:
        yield Finding(
            "ok", "evaluation sets", "no evaluation_root is set: only embedded sets and sets by path are available"
        )
        return
    if not root.is_dir():
        yield Finding(
            "error", "evaluation sets", f"{root} is not a folder", "correct `evaluation_root` in harness.toml"
        )
        return
    readable = []
    folders = {path.parent for pattern in ("*/test", "*/*/test") for path in root.glob(pattern)}
    declared = {path for pattern in ("*.toml", "*/*.toml") for path in root.glob(pattern) if _declares_a_set(path)}
    for folder in sorted(folders | declared):
        try:
            describe(folder)
        except DataError as error:
            where = f"{error.where}: " if error.where else ""
            yield Finding("warning", "evaluation sets", f"{where}{error.what}", error.fix or "")
        else:
            readable.append(folder.relative_to(root).as_posix())
    if readable:
        yield Finding("ok", "evaluation sets", f"{len(readable)} under {root}: {', '.join(readable)}")
    else:
        remedy = "create them as docs/evaluation.md describes, or unset `evaluation_root`"
        yield Finding("warning", "evaluation sets", f"none that can be read under {root}", remedy)


def _declares_a_set(file: Path) -> bool:
    """Whether a TOML file states the folder of a set, as every declared set does."""
    try:
        return re.search(r"^data *= *[\"']", read_text(file, MOST_TOML), re.MULTILINE) is not None
    except (HarnessError, OSError, ValueError):
        return False


def filesystem(path: Path) -> str:
    """The type of the file system that `path` is or would be on, according to the mount table."""
    parts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((parts[parent] for parent in (path, *path.parents) if parent in parts), "unknown")
