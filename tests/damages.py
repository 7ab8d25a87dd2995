"""Ways to damage a file, for tests of whatever reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flipped(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "something").touch()


def _link(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flipped,
    "cut": _cut,
    "empty": _empty,
    "a pipe": _pipe,
    "a folder": _folder,
    "a link to itself": _link,
    "gone": Path.unlink,
}
