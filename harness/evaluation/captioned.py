"""Sets of long captions as their authors publish them: images, and one caption of each.

Urban1k       image/NAME.jpg and caption/NAME.txt
DOCCI         docci_descriptions.jsonlines: example_id, split, image_file, description; images/
IIW-400       data.jsonl: image/key, IIW; images/ or images_aar/ of DOCCI, KEY.jpg
DCI           annotations/NAME.json: image, extra_caption; photos/. Images without an extra caption are left out
              (Long-DCI of TULIP)

The folder is the set; DCI's may also be the one above `densely_captioned_images/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import DataError
from harness.base.files import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_DOCCI, _IIW = "docci_descriptions.jsonlines", "data.jsonl"
_FIX = "restore the authors' file; those of Urban1k, DOCCI, IIW-400 and DCI are read"


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its caption."""

    key: str
    image: Path
    caption: str


@dataclass(frozen=True)
class PublishedCaptions:
    """A set, in the order of its annotations, or of its files' names."""

    files: tuple[Path, ...]
    """That hold the captions."""
    images: tuple[CaptionedImage, ...]


def read_captioned(folder: Path, split: str) -> PublishedCaptions:
    """The images and captions of the set in `folder`.

    Args:
        split: DOCCI's part; the others have only `test`.

    Raises:
        DataError: a file cannot be read, there is no such part, a caption is blank, or an image is missing.
    """
    root = folder if not (folder / "densely_captioned_images").is_dir() else folder / "densely_captioned_images"
    if (root / _DOCCI).is_file():
        files = [root / _DOCCI]
        rows = [(one["example_id"], one["image_file"], one["description"]) for one in _lines(files[0], split)]
        found = _found(rows, [root / "images", root], files[0])
    else:
        if split != "test":
            fix = 'measure evaluation.split = "test"'
            raise DataError(f"a set of long captions has no part {split!r}", where=str(folder), fix=fix)
        if (root / _IIW).is_file():
            files = [root / _IIW]
            rows = [(one["image/key"], one["image/key"], one["IIW"]) for one in _lines(files[0], None)]
            found = _found(rows, [root / "images_aar", root / "images", root], files[0])
        elif (root / "annotations").is_dir():
            files = sorted((root / "annotations").glob("*.json"))
            stated = [(file.stem, _fields(file, "image", "extra_caption")) for file in files]
            rows = [(key, image, caption) for key, (image, caption) in stated if caption.strip()]
            found = _found(rows, [root / "photos"], root / "annotations")
        else:
            files = sorted((root / "caption").glob("*.txt"))
            rows = [(file.stem, file.stem, _text(file).strip()) for file in files]
            found = _found(rows, [root / "image"], root / "caption")
    if not found:
        raise DataError("holds no samples", where=str(folder), fix=_FIX)
    return PublishedCaptions(tuple(files), tuple(found))


def _found(rows: list[tuple[str, str, str]], folders: list[Path], where: Path) -> list[CaptionedImage]:
    found = []
    for key, image, caption in rows:
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(f'the caption of "{key}" is blank', where=str(where), fix="write it, or remove the image")
        candidates = (folder / f"{image}{suffix}" for folder in folders for suffix in ("", *SUFFIXES))
        file = next((one for one in candidates if one.is_file()), None)
        if file is None:
            fix = f"copy it to {folders[0]}"
            raise DataError(f"the image {image} is missing", where=str(where), fix=fix)
        found.append(CaptionedImage(str(key), file, caption))
    return found


def _lines(file: Path, split: str | None) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line; those of a part, if `split` is stated."""
    needed = ("image/key", "IIW") if split is None else ("example_id", "split", "image_file", "description")
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if line.strip():
            one = _object(line, f"{file}: line {number}", needed)
            if split is None or one["split"] == split:
                yield one


def _fields(file: Path, *names: str) -> tuple[str, ...]:
    one = _object(_text(file), str(file), names)
    return tuple(str(one[name]) for name in names)


def _object(text: str, where: str, needed: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if missing := [name for name in needed if name not in found]:
            raise ValueError(f"has no {missing[0]!r}")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"is no annotation of an image ({error})", where=where, fix=_FIX) from None
    return dict(found)


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=str(file), fix=_FIX) from error
