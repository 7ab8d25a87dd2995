"""Shards by path, folder, glob or brace pattern."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from harness.base.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str, key: str = "data.shards", suffixes: tuple[str, ...] = (".tar",)) -> list[Path]:
    """The files that `pattern` stands for, each once, in order of name within each alternative of a brace.

    `{a,b}` and `{000..123}` list alternatives, each of which must exist; `*`, `?` and `[..]` match what is there; a
    folder stands for its files with one of `suffixes`.

    Args:
        key: field of the spec that the pattern stands in, for messages.

    Raises:
        DataError: nothing matches, a named shard is missing, or the pattern is a URL.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError("is not on a file system", where=pattern, fix="give the path of files on disk")
    files: dict[Path, None] = {}
    for alternative in braces(pattern):
        files |= dict.fromkeys(_matches(alternative, key, suffixes))
    return list(files)


def braces(pattern: str) -> list[str]:
    """`pattern` with each `{..}` written out; the first number's leading zeros give the width.

    Raises:
        DataError: a range runs backwards or holds more than a million numbers.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [text for option in _options(match[1], pattern) for text in braces(f"{before}{option}{after}")]


def _options(inside: str, pattern: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    if not first <= last < first + 1_000_000:
        raise DataError(f"{{{inside}}} is no range of shards", where=pattern, fix="write {first..last}")
    return [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]


def _matches(path: str, key: str, suffixes: tuple[str, ...]) -> list[Path]:
    if glob.has_magic(path) and not os.path.exists(path):
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise DataError("matches no file", where=path, fix=f"correct {key}")
        return [Path(name) for name in found]
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if name.endswith(suffixes) and not name.startswith("."))
        if not inside:
            kinds = " or ".join(f"*{suffix}" for suffix in suffixes)
            raise DataError("matches no file", where=os.path.join(path, kinds or "*"), fix=f"correct {key}")
        return [Path(path, name) for name in inside]
    if not os.path.isfile(path):
        what = "shard is missing" if key == "data.shards" else "file is missing"
        raise DataError(what, where=path, fix=f"fetch it or leave it out of {key}")
    return [Path(path)]
