"""Published ablations in little space: what a reader looks at as it is, the rest in an archive.

docs/results/NAME/   SHA256SUMS, bundle.json, ablation.json and claims.json as `harness publish` wrote them, and
                     rest.tar.xz with every other file except the code
docs/results/code/   the code of the bundles, one archive for all bundles that were made by the same code

Nothing is left out: unpacked, a bundle has every file of its SHA256SUMS, so its root hash stays what it was.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from harness.base.errors import StoreError
from harness.base.files import read_json, read_text, write_bytes
from harness.execute.bundle import ABLATION, ABOUT, CLAIMS, CODE, SUMS, changed, files_of

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "docs" / "results"
PLAIN = (SUMS, ABOUT, ABLATION, CLAIMS)
"""Files of a bundle that stay as they are."""
REST = "rest.tar.xz"
LIMIT = 10_000_000
"""Most bytes of all bundles together."""


def names(results: Path = RESULTS) -> list[str]:
    """Names of the packed bundles."""
    return sorted(file.parent.name for file in results.glob(f"*/{SUMS}"))


def size(results: Path = RESULTS) -> int:
    """Bytes of all packed bundles."""
    return sum(file.stat().st_size for file in results.rglob("*") if file.is_file())


def pack(bundle: Path, results: Path = RESULTS) -> Path:
    """Pack the published folder `bundle` under its own name, in place of an earlier one; returns the new folder.

    Raises:
        StoreError: it is no bundle, or a file of it was changed.
    """
    if problems := changed(bundle):
        raise StoreError(problems[0], where=str(bundle), fix="publish it again")
    folder = results / str(read_json(bundle / ABOUT)["name"])
    if folder.name == CODE:
        raise StoreError(f"a bundle cannot be called {CODE!r}", where=str(bundle), fix="rename its spec")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in PLAIN:
        shutil.copyfile(bundle / name, folder / name)
    packed = [name for name in files_of(bundle) if name not in PLAIN]
    write_bytes(folder / REST, _archive(bundle, (name for name in packed if not _is_code(name))))
    code = _code_of(folder, results)
    if not code.exists():
        code.parent.mkdir(exist_ok=True)
        write_bytes(code, _archive(bundle, filter(_is_code, packed)))
    for old in set((results / CODE).iterdir()) - {_code_of(results / name, results) for name in names(results)}:
        old.unlink()
    return folder


def unpack(name: str, into: Path, results: Path = RESULTS) -> Path:
    """Unpack the bundle `name` to the folder of that name in `into`, which is made anew; returns the folder.

    Raises:
        StoreError: there is no such bundle, or it is damaged.
    """
    source, folder = results / name, into / name
    if not (source / SUMS).is_file():
        raise StoreError(
            "there is no such bundle", where=str(source), fix=f"there are {', '.join(names(results)) or 'none'}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for file in PLAIN:
            shutil.copyfile(source / file, folder / file)
        for archive in (source / REST, _code_of(source, results)):
            with tarfile.open(archive, "r:xz") as opened:
                opened.extractall(folder, filter="data")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise StoreError(f"cannot be unpacked ({error})", where=str(source), fix="restore it from git") from None
    return folder


def _is_code(name: str) -> bool:
    return PurePosixPath(name).parts[0] == CODE


def _code_of(folder: Path, results: Path) -> Path:
    """The archive with the code of a bundle, named by the digest of what its SHA256SUMS says of the code."""
    lines = [line for line in read_text(folder / SUMS).splitlines() if _is_code(line[66:] or "-")]
    return results / CODE / f"{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}.tar.xz"


def _archive(folder: Path, files: Iterable[str]) -> bytes:
    """An archive of files below `folder`. Equal contents give equal bytes: it has no times and owners."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", format=tarfile.USTAR_FORMAT, preset=6) as archive:
        for name in sorted(files, key=lambda name: (PurePosixPath(name).suffix, PurePosixPath(name).name, name)):
            data = (folder / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()
