"""Generating an embedded data set once, safe against kills and against several processes at once."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from pathlib import Path

from harness.base.errors import SpecError, StoreError
from harness.base.log import say
from harness.base.sums import files_below, is_damaged, write_sums
from harness.config.data import Data, EmbeddedWorld, FileData, FileSpec, MixtureData, unknown_data
from harness.data.sources.inspection import indexed
from harness.data.synthetic.embedded import home, train_shards

_STALE_S = 3600.0


def materialise(data: Data, cache: Path, package: Path | None = None) -> None:
    """Generate an embedded data set under `cache`, with its index, unless it is there. Own data is left as it is.

    A data set that is no longer as it was generated is generated again.

    The folder appears whole or not at all: a killed process leaves only a hidden folder that a later one removes,
    and of several processes at once the first to finish wins.

    Args:
        package: where to find the package of pictures that the data is made of, if it is not installed.

    Raises:
        DataError: a package that the data is made of is missing.
        StoreError: the cache cannot be written.
    """
    match data:
        case EmbeddedWorld():
            _materialise(data, cache, package)
        case FileSpec() | MixtureData():
            return
        case _:
            raise unknown_data(data)


def as_files(data: Data, cache: Path) -> FileData:
    """`data` as the files that it is read from; an embedded world is generated first.

    Raises:
        SpecError: `data` is a mixture.
        StoreError: the cache cannot be written.
    """
    match data:
        case EmbeddedWorld():
            _materialise(data, cache)
            return train_shards(data, cache)
        case FileSpec():
            return data
        case MixtureData():
            what, fix = "is a mixture, which has no files of its own", "give a spec whose data is one of its sources"
            raise SpecError(what, where="data", fix=fix)
        case _:
            raise unknown_data(data)


def _materialise(data: EmbeddedWorld, cache: Path, package: Path | None = None) -> None:
    folder = home(data, cache)
    if (is_new := not folder.is_dir()) or is_damaged(folder):
        if not is_new:
            say(f"the data {folder} is damaged: it is generated again")
        try:
            _generate_aside(data, folder, package)
        except OSError as error:
            raise StoreError(
                f"cannot be generated ({error.strerror or error})",
                where=str(folder),
                fix="free space or correct the permissions",
            ) from error
    indexed(train_shards(data, cache), cache)


def _generate_aside(data: EmbeddedWorld, folder: Path, package: Path | None) -> None:
    # Only generating needs numpy and Pillow.
    from harness.data.synthetic.generate import generators

    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        generators(data, aside, package)
        write_sums(aside, files_below(aside))
        aside.chmod(0o755)
        _move_into_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_into_place(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`, in place of one that is damaged; of several processes, the first may have done it."""
    if folder.is_dir() and is_damaged(folder):
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        folder.rename(old / folder.name)
        shutil.rmtree(old)
    try:
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_stale(folder: Path) -> None:
    for aside in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - aside.stat().st_mtime > _STALE_S:
            shutil.rmtree(aside, ignore_errors=True)
