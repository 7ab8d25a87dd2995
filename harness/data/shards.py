"""Samples in webdataset shards, grouped as webdataset groups them: neighbours whose names agree up to the first dot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.data import pictures
from harness.data.candidates import Candidate, Rejected, RejectedError, captions_in, one_caption
from harness.data.tar import Archive, Member
from harness.spec.data import WebdatasetData

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_MAX_TEXT = 1 << 24
_JSON = "json:"


def candidates(data: WebdatasetData, files: list[Path], folder: Path) -> Iterator[Candidate | Rejected]:
    """The samples of `files` in order; for each that is none, the reason.

    Raises:
        DataError: a shard is missing or damaged.
    """
    for file in files:
        location = os.path.relpath(file, folder)
        with Archive(file) as archive:
            for key, group in groupby(archive.members(), key=_key):
                if key is not None:
                    yield _candidate(data, key, list(group), location, archive)


def _key(member: Member) -> str | None:
    match = _NAME.fullmatch(member.name)
    return match[1] if match else None


def _candidate(
    data: WebdatasetData, key: str, group: list[Member], location: str, archive: Archive
) -> Candidate | Rejected:
    by_extension: dict[str, Member] = {}
    for member in group:
        by_extension.setdefault(member.name[len(key) + 1 :].lower(), member)
    try:
        image = next((by_extension[name] for name in pictures.EXTENSIONS if name in by_extension), None)
        if image is None:
            raise RejectedError("no image")
        texts = _Texts(by_extension, archive)
        raw = one_caption(texts.at(data.raw)[:1] if data.raw.startswith(_JSON) else texts.whole(data.raw))
        pseudo = {source: texts.at(place) for source, place in data.pseudo.items()}
    except RejectedError as error:
        return Rejected(str(error), location)
    inside = partial(_inside, archive, image.offset)
    return Candidate(key, location, image.offset, image.size, image.head, inside, raw, pseudo)


def _inside(archive: Archive, offset: int, start: int, stop: int) -> bytes:
    return archive.read(offset + start, offset + stop)


class _Texts:
    """The text members of one sample."""

    def __init__(self, by_extension: dict[str, Member], archive: Archive) -> None:
        self._members, self._archive = by_extension, archive
        self._metadata: dict[str, Any] | None = None

    def at(self, place: str) -> tuple[str, ...]:
        """The captions at `json:KEY`, or the lines of a text member."""
        if place.startswith(_JSON):
            return captions_in(self._json().get(place.removeprefix(_JSON)))
        return captions_in(self._text(place).splitlines())

    def whole(self, extension: str) -> tuple[str, ...]:
        """A text member as one caption."""
        return captions_in(" ".join(self._text(extension).split("\n")))

    def _json(self) -> dict[str, Any]:
        if self._metadata is None:
            try:
                parsed = json.loads(self._text("json") or "{}")
            except ValueError:
                raise RejectedError("json unreadable") from None
            if not isinstance(parsed, dict):
                raise RejectedError("json unreadable")
            self._metadata = parsed
        return self._metadata

    def _text(self, extension: str) -> str:
        member = self._members.get(extension)
        if member is None:
            return ""
        if member.size > _MAX_TEXT:
            raise RejectedError(f"{extension} too long")
        whole = len(member.head) == member.size
        content = member.head if whole else self._archive.read(member.offset, member.offset + member.size)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise RejectedError(f"{extension} is not UTF-8") from None
