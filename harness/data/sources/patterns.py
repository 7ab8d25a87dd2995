"""Shards by path, folder, glob or brace pattern."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from harness.base.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?", re.ASCII)
MOST_FILES, MOST_BRACES = 1_000_000, 16
"""That a pattern stands for, and that it has."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4")
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
"""Extensions of image files; of those of one sample, the first that is there is taken."""
_LOOSE = tuple(f".{extension}" for extension in IMAGES)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in file names that tell splits apart, as Hugging Face's datasets reads them."""


def expand(pattern: str, key: str = "data.shards", suffixes: tuple[str, ...] = (".tar",)) -> list[Path]:
    """The files that `pattern` stands for, each once, in order of name within each alternative of a brace.

    `{a,b}`, `{000..123}` and `{000..120..10}` list alternatives, each of which must exist; `*`, `?` and `[..]` match
    what is there; `::` joins patterns. A folder stands for its files with one of `suffixes`; without any, for those in
    folders below. Folders that exist are taken literally, whatever characters they are called by. For `data.shards`, a
    folder without shards stands for the folders of img2dataset's `files` layout in it.

    Args:
        key: field of the spec that the pattern stands in, for messages.

    Raises:
        DataError: nothing matches, a named shard is missing, or the pattern is a URL.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError("is not on a file system", where=pattern, fix="give the path of files on disk")
    files: dict[Path, None] = {}
    for one in [pattern] if os.path.exists(pattern) else pattern.split("::"):
        there, rest = _literal(one)
        for alternative in braces(rest):
            files |= dict.fromkeys(_matches(os.path.join(there, alternative) if alternative else there, key, suffixes))
    return list(files)


def is_here(pattern: str | None) -> bool:
    """Whether one file that `pattern` stands for, at least, is there."""
    try:
        return pattern is not None and bool(expand(pattern, suffixes=("",)))
    except DataError:
        return False


def beside(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """What the folders of `pattern` hold besides the files that it stands for, a sentence each."""
    notes = []
    for folder in filter(os.path.isdir, pattern.split("::")):
        if _inside(folder, suffixes):
            below = _below(folder, suffixes)
            if below:
                notes.append(f"{folder}: {len(below)} files in sub-folders are not read ({below[0]} first)")
        packed = [*_inside(folder, _COMPRESSED), *_below(folder, _COMPRESSED)] if ".tar" in suffixes else []
        if packed:
            notes.append(f"{folder}: {len(packed)} compressed files are not read ({packed[0]} first); unpack them")
    return notes


def of_split(files: list[Path], split: str | None, pattern: str, key: str) -> list[Path]:
    """Those of `files`, which `pattern` stands for, that belong to `split`; all of them where none is stated.

    Raises:
        DataError: they belong to several splits and neither `split` nor the pattern says which, or none has `split`.
    """
    base = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    found = {file: _split_of(os.path.relpath(os.path.abspath(file), base)) for file in files}
    counts = {name: list(found.values()).count(name) for name in dict.fromkeys(found.values()) if name}
    listed = ", ".join(f"{name}: {count} files" for name, count in counts.items())
    if split is not None:
        wanted = _SPLITS.get(split.lower(), split)
        chosen = [file for file in files if wanted in (found[file], *_words(file.name))]
        if not chosen:
            what = f"no file belongs to the split {split!r} (there are: {listed or 'none by name'})"
            raise DataError(what, where=pattern, fix="correct data.split")
        return chosen
    stated = {_SPLITS.get(word) for word in _words(_literal(pattern)[1])}
    if len(counts) > 1 and not counts.keys() <= stated:
        usual = "train" if "train" in counts else next(iter(counts))
        fix = f'set data.split = "{usual}", or name the files in {key}'
        raise DataError(f"holds several splits ({listed})", where=pattern, fix=fix)
    return files


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())


def _split_of(name: str) -> str | None:
    """The split that a relative path names, in the file's name or else in a folder's."""
    words = [word for part in reversed(name.split(os.sep)) for word in _words(part)]
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _literal(path: str) -> tuple[str, str]:
    """`path` parted into what exists as it is written and the rest, which is a pattern."""
    parts = path.split(os.sep)
    for count in range(len(parts), 0, -1):
        there = os.sep.join(parts[:count]) or os.sep
        if os.path.exists(there) and (there != os.sep or count == 1):
            return there, os.sep.join(parts[count:])
    return "", path


def braces(pattern: str) -> list[str]:
    """`pattern` with each `{..}` written out; the first number's leading zeros give the width.

    Raises:
        DataError: a range runs backwards, or the pattern expands to more than a million names.
    """
    least = math.prod(_count(found[1], pattern) for found in _BRACES.finditer(pattern))
    found = list(islice(_braces(pattern, 0), MOST_FILES + 1)) if least <= MOST_FILES else []
    if least > MOST_FILES or len(found) > MOST_FILES:
        raise DataError(f"expands to more than {MOST_FILES:,} files", where=pattern, fix="write a shorter range")
    return found


def _braces(pattern: str, depth: int) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    if depth == MOST_BRACES:
        raise DataError(f"has more than {MOST_BRACES} pairs of braces", where=pattern, fix="write fewer")
    before, after = pattern[: match.start()], pattern[match.end() :]
    for option in _options(match[1], pattern):
        yield from _braces(f"{before}{option}{after}", depth + 1)


def _options(inside: str, pattern: str) -> list[str]:
    if (numbers := _range(inside, pattern)) is None:
        return inside.split(",")
    width = inside.index(".")
    return [f"{number:0{width}d}" for number in numbers]


def _count(inside: str, pattern: str) -> int:
    numbers = _range(inside, pattern)
    return inside.count(",") + 1 if numbers is None else len(numbers)


def _range(inside: str, pattern: str) -> range | None:
    if (span := _RANGE.fullmatch(inside)) is None:
        return None
    first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
    if not (first <= last < first + MOST_FILES and step):
        raise DataError(f"{{{inside}}} is not a range of shards", where=pattern, fix="write {first..last}")
    return range(first, last + 1, step)


def _matches(path: str, key: str, suffixes: tuple[str, ...]) -> list[Path]:
    there, rest = _literal(path)
    if rest and glob.has_magic(rest):
        found = sorted(glob.glob(os.path.join(glob.escape(there), rest), recursive=True))
        if not found:
            raise DataError("matches no file", where=path, fix=f"correct {key}")
        return [Path(name) for name in found]
    if os.path.isdir(path):
        if os.path.realpath(path) == os.sep:
            raise DataError("is the whole file system", where=path, fix=f"correct {key}")
        return [Path(path, name) for name in _of_folder(path, key, suffixes)]
    if not os.path.isfile(path):
        what = "shard is missing" if key == "data.shards" else "file is missing"
        raise DataError(what, where=path, fix=f"fetch it or leave it out of {key}")
    return [Path(path)]


def _of_folder(path: str, key: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a folder, relative to it; for `data.shards` also the folders of loose files."""
    found = _inside(path, suffixes) or _below(path, suffixes)
    if not found and key == "data.shards":
        if packed := _inside(path, _COMPRESSED) or _below(path, _COMPRESSED):
            what = f"its {len(packed)} shards are compressed ({packed[0]} first)"
            raise DataError(what, where=path, fix="unpack them: samples are read at random")
        found = sorted({os.path.dirname(name) for name in [*_inside(path, _LOOSE), *_below(path, _LOOSE)]})
    if not found:
        kinds = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise DataError("matches no file", where=os.path.join(path, kinds or "*"), fix=f"correct {key}")
    return found


def _inside(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(suffixes) and not name.startswith("."))


def _below(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files in folders below, relative to `folder`; hidden ones are left alone."""
    found = []
    for parent, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if parent != folder:
            found += [os.path.join(os.path.relpath(parent, folder), name) for name in _inside(parent, suffixes)]
    return sorted(found)
