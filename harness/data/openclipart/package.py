"""Finding Debian's package `openclipart-svg`, checking that it is the known one, and reading its drawings' texts."""

from __future__ import annotations

import hashlib
import io
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from harness.base.errors import DataError

INSTALLED = Path("/usr/share/openclipart/svg")
"""Where Debian's and Ubuntu's package puts its drawings."""
DIGESTS = {"0.18": "0816d77a7b96cc11d2a20d558c9921e7ea6ace9148672b1212bb2e5b45c9e357"}
"""`digest_of` the drawings, by version of the package (Debian bookworm: 1:0.18+dfsg-19)."""
_INSTALL = "apt-get install openclipart-svg, or name a downloaded package: harness data openclipart SPEC --package FILE"
_AR = b"!<arch>\n"
_AR_HEADER = 60


class Drawing(NamedTuple):
    """An SVG file with the texts of its authors."""

    name: str
    """Its path within the package."""
    content: bytes
    title: str
    keywords: tuple[str, ...]
    description: str


@contextmanager
def located(package: Path | None) -> Iterator[Path]:
    """The folder of the drawings: that of `package`, a folder or a .deb file, or of the installed package.

    Raises:
        DataError: there is no such package.
    """
    place = INSTALLED if package is None else package
    if place.is_dir():
        yield place
    elif place.is_file():
        with TemporaryDirectory(prefix="openclipart-") as folder:
            _unpack(place, Path(folder))
            yield Path(folder)
    else:
        raise DataError("Debian's package openclipart-svg is missing", where=str(place), fix=_INSTALL)


def drawings(folder: Path, version: str) -> tuple[list[Drawing], Counter[str]]:
    """All drawings under `folder` with their texts, sorted by name; and how many files were left out, by reason.

    A link to a drawing that is filed in several folders is not read.

    Raises:
        DataError: they are not those of this version of the package.
    """
    files = [file for file in folder.rglob("*.svg") if file.is_file() and not file.is_symlink()]
    named = sorted((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files)
    if (found := digest_of(named)) != DIGESTS[version]:
        what = f"{len(named):,} drawings with the digest {found}, not those of openclipart-svg {version}"
        raise DataError(what, where=str(folder), fix=_INSTALL)
    read = [_drawing(name, content) for name, content in named]
    left_out = Counter({"not readable as XML": read.count(None)})
    return [drawing for drawing in read if drawing is not None], left_out


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of the lines `SHA-256 of the content, two spaces, name`, as sha256sum writes them, in the given order."""
    whole = hashlib.sha256()
    for name, content in files:
        whole.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def _drawing(name: str, content: bytes) -> Drawing | None:
    try:
        root = ET.fromstring(content)
    except ET.ParseError:
        return None
    work = root.find(".//{*}Work")
    if work is None:
        return Drawing(name, content, "", (), "")
    keywords = tuple(text for item in work.iterfind("{*}subject//{*}li") if (text := _one_line(item.text)))
    title, description = (_one_line(work.findtext(f"{{*}}{part}")) for part in ("title", "description"))
    return Drawing(name, content, title, keywords, description)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _unpack(package: Path, folder: Path) -> None:
    """Write the drawings of a .deb file into `folder`. A .deb is an `ar` archive with a member data.tar.xz (deb(5))."""
    try:
        inside = f".{INSTALLED}/"
        with tarfile.open(fileobj=io.BytesIO(_data_member(package.read_bytes()))) as tar:
            for member in tar:
                if member.isfile() and member.name.startswith(inside) and (file := tar.extractfile(member)):
                    target = folder / member.name.removeprefix(inside)
                    if not target.resolve().is_relative_to(folder.resolve()):
                        raise tarfile.TarError(member.name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read())
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError("not a Debian package", where=str(package), fix=_INSTALL) from error


def _data_member(archive: bytes) -> bytes:
    """The member `data.tar.*` of an `ar` archive.

    Raises:
        ValueError: there is none.
    """
    place = len(_AR)
    while archive.startswith(_AR) and place + _AR_HEADER <= len(archive):
        name, size = archive[place : place + 16].strip(), int(archive[place + 48 : place + 58])
        place += _AR_HEADER
        if name.startswith(b"data.tar"):
            return archive[place : place + size]
        place += size + size % 2
    raise ValueError("no data.tar")
