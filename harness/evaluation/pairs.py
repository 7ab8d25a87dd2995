"""Pair tasks: groups of images and texts that a model has to match, as their authors publish them.

A set is the authors' annotation file beside their images, unchanged:

SugarCrepe                  add_att.json: {id: {filename, caption, negative_caption}}
Winoground                  examples.jsonl: image_0, image_1, caption_0, caption_1 a line
ARO, relation, attribution  list of {image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption}
VL-CheckList                list of [image, {"POS": [texts], "NEG": [texts]}], of which the first two count

Images lie below the annotation file's folder, or one of the three above it, there or in images/ or val2017/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import DataError
from harness.base.files import read_bytes

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels."""
_FOLDERS = ("", "images", "val2017")
_ABOVE = 4
_FIX = "restore the authors' file; SugarCrepe's, Winoground's, ARO's and VL-CheckList's are read"


@dataclass(frozen=True)
class Group:
    """Images and texts that belong together: text i describes image i, further ones are wrong."""

    key: str
    images: tuple[tuple[str, Box | None], ...]
    """Each image's file, and the part of it that is shown."""
    texts: tuple[str, ...]
    category: str = ""
    """What the pair tests, where the authors say so."""


def groups_of(file: Path) -> tuple[Group, ...]:
    """The groups of an annotation file, in its order; images are paths.

    Raises:
        DataError: the file is no annotation file, has no group, or a group lacks its negative or its image.
    """
    try:
        text = read_bytes(file).decode("utf-8-sig")
        data = [json.loads(line) for line in text.splitlines() if line] if file.suffix == ".jsonl" else json.loads(text)
        found = list(_groups(data))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
        what = f"is no annotation file of a pair task ({type(error).__name__}: {error})"
        raise DataError(what, where=str(file), fix=_FIX) from error
    if not found:
        raise DataError("holds no samples", where=str(file), fix=_FIX)
    for group in found:
        check_group(group.key, len(group.images), group.texts, str(file))
    resolve = _resolver(file, found[0].images[0][0])
    return tuple(
        Group(one.key, tuple((resolve(name), box) for name, box in one.images), one.texts, one.category)
        for one in found
    )


def check_group(key: str, images: int, texts: tuple[str, ...], where: str) -> None:
    """Refuse a group that offers no choice.

    Raises:
        DataError: it lacks its negative, a text is blank, or it has other numbers of images and texts.
    """
    if not all(text.strip() for text in texts):
        raise DataError(f'pair "{key}" has a blank text', where=where, fix="write it, or remove the pair")
    if (images, len(texts)) in ((1, 1), (1, 0), (0, 1), (0, 0)):
        what = f'pair "{key}" has no negative: {images} image and {len(texts)} text'
        raise DataError(what, where=where, fix="give it a second text, a second image, or both")
    if 1 not in (images, len(texts)) and (images, len(texts)) != (2, 2):
        what = f'pair "{key}" has {images} images and {len(texts)} texts'
        raise DataError(what, where=where, fix="give it one image, one text, or two of both")


def _groups(data: Any) -> Iterator[Group]:
    if isinstance(data, dict):
        for key, one in data.items():
            yield Group(str(key), ((one["filename"], None),), _texts(one["caption"], one["negative_caption"]))
        return
    for index, one in enumerate(data):
        if isinstance(one, list):
            image, texts = one
            yield Group(str(index), ((image, None),), _texts(*texts["POS"][:1], *texts["NEG"][:1]))
        elif "true_caption" in one:
            left, upper, width, height = (int(one[f"bbox_{side}"]) for side in "xywh")
            box = (left, upper, left + width, upper + height)
            category = str(one.get("relation_name") or "_".join(one.get("attributes", ())))
            texts = _texts(one["true_caption"], one["false_caption"])
            yield Group(str(index), ((one["image_path"], box),), texts, category)
        else:
            images = tuple((f"{one[name].removesuffix('.png')}.png", None) for name in ("image_0", "image_1"))
            texts = _texts(one["caption_0"], one["caption_1"])
            yield Group(str(one["id"]), images, texts, str(one.get("collapsed_tag", "")))


def _texts(*texts: str) -> tuple[str, ...]:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
    return texts


def _resolver(file: Path, first: str) -> Callable[[str], str]:
    """From an image's name in the annotations to its file, by where the `first` one lies."""
    tried = [above / folder for above in [file.parent, *file.parents[1:_ABOVE]] for folder in _FOLDERS]
    root = next((folder for folder in tried if (folder / first).is_file()), None)
    if root is None:
        where = f"{file.parent} or its images/ or val2017/, or a folder above"
        raise DataError(f"the image {first} is missing", where=str(file), fix=f"copy the images to {where}")

    def resolve(name: str) -> str:
        if not (root / name).is_file():
            raise DataError(f"the image {name} is missing", where=str(file), fix=f"copy it to {root}")
        return str(root / name)

    return resolve
