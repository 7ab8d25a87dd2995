"""Data at URLs: copied here once and whole, as samples are read at random and compute nodes often have no network."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from harness.base.errors import DataError, StoreError
from harness.base.files import read_json, replacing, write_json
from harness.data.sources.patterns import braces

_LISTING = "files.json"
_COPIES_AT_ONCE = 8


class Remote(NamedTuple):
    """One file behind a URL pattern."""

    url: str
    name: str
    """What it is called here."""
    size: int
    """Bytes."""


def is_url(pattern: str) -> bool:
    """Whether `pattern` names files of another system."""
    return "://" in pattern


def mirrored(pattern: str, cache: Path) -> list[Path]:
    """The local copies of what a URL pattern names, in order. Never touches the network.

    Raises:
        DataError: they have not been fetched, or not all of them.
    """
    folder = _folder(pattern, cache)
    if not (folder / _LISTING).is_file():
        raise DataError("is not on this machine", where=pattern, fix="`harness data fetch SPEC` copies it once")
    try:
        files = [Remote(str(url), str(name), int(size)) for url, name, size in read_json(folder / _LISTING)]
    except (TypeError, ValueError, StoreError):
        what, fix = f"its listing {folder / _LISTING} is damaged", "`harness data fetch SPEC` writes it again"
        raise DataError(what, where=pattern, fix=fix) from None
    missing = [file for file in files if not _is_here(folder, file)]
    if missing:
        what = f"{len(missing)} of {len(files)} files are not on this machine, {missing[0].name} first"
        raise DataError(what, where=pattern, fix="`harness data fetch SPEC` resumes the copy")
    return [folder / file.name for file in files]


def fetch(pattern: str, cache: Path, said: Callable[[str], None]) -> list[Path]:
    """Copy what a URL pattern names; files that are here with the right size are not copied again.

    Raises:
        DataError: the URL cannot be read, names nothing, or a copy came out short.
        StoreError: `cache` cannot be written, or is too small.
    """
    folder = _folder(pattern, cache)
    files = _listed(pattern)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not _is_here(folder, file)]
    _check_space(folder, sum(file.size for file in missing), pattern)
    said(f"{pattern}: {len(files)} files, {len(files) - len(missing)} here, {_gb(missing):.2f} GB to copy")
    write_json(folder / _LISTING, [list(file) for file in files])
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        for file in pool.map(lambda file: _copy(file, folder), missing):
            said(f"copied {file.name} ({file.size:,} bytes)")
    return [folder / file.name for file in files]


def _folder(pattern: str, cache: Path) -> Path:
    return cache / "remote" / hashlib.sha256(pattern.encode()).hexdigest()[:16]


def _is_here(folder: Path, file: Remote) -> bool:
    local = folder / file.name
    return local.is_file() and local.stat().st_size == file.size


def _gb(files: list[Remote]) -> float:
    return sum(file.size for file in files) / 1e9


def _check_space(folder: Path, needed: int, pattern: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"needs {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free"
        raise DataError(what, where=pattern, fix="free space, or set `store` in harness.toml to a larger disk")


def _listed(pattern: str) -> list[Remote]:
    urls = list(dict.fromkeys(url for text in braces(pattern) for url in _matching(text, pattern)))
    names = [PurePosixPath(url.partition("://")[2].partition("?")[0]).name for url in urls]
    plain = len(set(names)) == len(names) and not set(names) & {"", ".", "..", _LISTING}
    called = names if plain else [f"{number:06d}-{name.strip('.')}" for number, name in enumerate(names)]
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        sizes = list(pool.map(_size, urls))
    return [Remote(url, name, size) for url, name, size in zip(urls, called, sizes, strict=True)]


def _matching(url: str, pattern: str) -> Iterator[str]:
    if not glob.has_magic(url):
        yield url
        return
    found = sorted(_system(url).glob(url))
    if not found:
        raise DataError("matches no file", where=pattern, fix="correct data.shards or data.path")
    scheme = url.partition("://")[0]
    yield from (name if is_url(name) else f"{scheme}://{name}" for name in found)


def _size(url: str) -> int:
    try:
        size = _system(url).info(url).get("size")
    except Exception as error:
        raise _unreadable(url, error) from error
    if size is None:
        raise DataError("its server does not report its size", where=url, fix="copy it by other means")
    return int(size)


def _copy(file: Remote, folder: Path) -> Remote:
    with replacing(folder / file.name) as aside:
        try:
            _system(file.url).get_file(file.url, str(aside))
        except Exception as error:
            raise _unreadable(file.url, error) from error
        copied = os.path.getsize(aside)
        if copied != file.size:
            raise DataError(f"came out at {copied:,} of {file.size:,} bytes", where=file.url, fix="fetch it again")
    return file


def _system(url: str) -> Any:
    import fsspec  # it looks for its plug-ins, and only fetching needs it

    try:
        return fsspec.core.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"cannot be read ({reason[:200]})", where=url, fix="check the URL, your credentials and network")
