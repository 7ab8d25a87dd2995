"""The data sets that the harness brings along: where they lie once generated, and generating them safely."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path

from harness.base.errors import StoreError
from harness.config.data import Data, DigitsData, ShapesData, TableData, WebdatasetData
from harness.data.sources.inspection import indexed

EMBEDDED_SOURCES = ("captioner", "captioner_b")
"""Pseudo-caption sources of the embedded data sets."""
_STALE_S = 3600.0


def home(data: ShapesData | DigitsData, cache: Path) -> Path:
    """The folder of a generated data set: everything that shapes its content is in the name."""
    content = json.dumps([data.science(defaults=True), data.algorithm], sort_keys=True)
    return cache / f"{data.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def train_shards(data: ShapesData | DigitsData, cache: Path) -> WebdatasetData:
    """The generated training data as the shards that they are."""
    return WebdatasetData(
        shards=str(home(data, cache) / "train" / "*.tar"),
        pseudo={source: f"json:{source}" for source in EMBEDDED_SOURCES},
    )


def embedded_names(data: Data) -> tuple[str, ...]:
    """Names of the evaluation sets that come with `data`."""
    match data:
        case ShapesData():
            return ("shapes", "shapes_retrieval")
        case DigitsData():
            return ("digits",)
        case WebdatasetData() | TableData():
            return ()


def embedded_sets(data: Data, cache: Path) -> dict[str, Path]:
    """Folders of the evaluation sets that come with `data`, by name, in clip-benchmark's layout."""
    if not isinstance(data, ShapesData | DigitsData):
        return {}
    return {name: home(data, cache) / "eval" / name for name in embedded_names(data)}


def materialise(data: Data, cache: Path) -> None:
    """Generate an embedded data set under `cache`, with its index, unless it is there. Own data is left as it is.

    The folder appears whole or not at all: a killed process leaves only a hidden folder that a later one removes,
    and of several processes at once the first to finish wins.

    Raises:
        StoreError: the cache cannot be written.
    """
    if not isinstance(data, ShapesData | DigitsData):
        return
    folder = home(data, cache)
    if not folder.is_dir():
        try:
            _generate_aside(data, folder)
        except OSError as error:
            raise StoreError(
                f"cannot be generated ({error.strerror or error})",
                where=str(folder),
                fix="free space or mend permissions",
            ) from error
    indexed(train_shards(data, cache), cache)


def _generate_aside(data: ShapesData | DigitsData, folder: Path) -> None:
    # Only generating needs numpy and Pillow.
    from harness.data.synthetic.generate import generate_digits, generate_shapes

    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        match data:
            case ShapesData():
                generate_shapes(data, aside)
            case DigitsData():
                generate_digits(data, aside)
        aside.chmod(0o755)
        _move_into_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_into_place(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_stale(folder: Path) -> None:
    for aside in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - aside.stat().st_mtime > _STALE_S:
            shutil.rmtree(aside, ignore_errors=True)
