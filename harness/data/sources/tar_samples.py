"""The members of one sample in a tar file: its key, its files by extension, and the texts in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Protocol

from harness.data.sources.raw_samples import RejectedError, captions_in
from harness.data.sources.tar import Member

_NAME = re.compile(r"((?:.*/)?[^./]+)[.]([^/]*)")
_MAX_TEXT = 1 << 24
_MAX_MEMBERS = 256
"""Members of one sample that are looked at; without a limit, a file of millions of one name would fill the memory."""


def grouped(members: Iterable[Member], skipped: Counter[str]) -> Iterator[tuple[str, Iterator[Member]]]:
    """Neighbours whose names agree, by key; members without a key are counted in `skipped`."""
    for key, group in groupby(_with_key(members, skipped), key=itemgetter(0)):
        yield key, (member for _, member in group)


def _with_key(members: Iterable[Member], skipped: Counter[str]) -> Iterator[tuple[str, Member]]:
    for member in members:
        if (key := key_of(member)) is None:
            skipped["members without a key (._NAME, .DS_Store, names without an extension)"] += 1
        else:
            yield key, member


def key_of(member: Member) -> str | None:
    """The key of the sample that `member` belongs to: its name up to the first dot, as webdataset groups them.

    None for names without an extension, and for hidden files, of which webdataset keys those in folders by the folder.
    """
    match = _NAME.fullmatch(member.name)
    return match[1] if match else None


def by_extension(key: str, group: Iterable[Member], skipped: Counter[str]) -> dict[str, Member]:
    """The first member of each extension, in lower case; others are counted in `skipped`."""
    found: dict[str, Member] = {}
    for member in islice(group, _MAX_MEMBERS):
        if found.setdefault(member.name[len(key) + 1 :].lower(), member) is not member:
            skipped["members that repeat an extension of their sample"] += 1
    return found


class Container(Protocol):
    """What holds members: a tar file or a folder."""

    skipped: Counter[str]

    def members(self) -> Iterator[Member]:
        """The regular files in it, in order."""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), by the members' offsets."""

    def place(self, member: Member, location: str) -> tuple[str, int]:
        """File of a member, where `location` is the container's, and offset in it."""


class SampleTexts:
    """The text members of one sample."""

    def __init__(self, members: dict[str, Member], archive: Container) -> None:
        self._members, self._archive = members, archive
        self._metadata: dict[str, dict[str, Any]] = {}

    def at(self, place: str) -> tuple[str, ...]:
        """The captions at `json:KEY`, or the lines of a text member.

        Raises:
            RejectedError: the text or JSON cannot be used.
        """
        extension, _, key = place.partition(":")
        if key:
            return captions_in(self._json(extension).get(key))
        return captions_in(self._text(place).splitlines())

    def whole(self, place: str) -> tuple[str, ...]:
        """As `at`, but a text member is one caption, line ends and all."""
        return self.at(place) if ":" in place else captions_in(self._text(place))

    def one(self, place: str) -> tuple[str, ...]:
        """The raw caption at `place`: the first of a list, a text member as a single line."""
        return self.at(place)[:1] if ":" in place else captions_in(" ".join(self._text(place).split("\n")))

    def value(self, place: str) -> str | None:
        """A JSON value as text, to join by.

        Raises:
            RejectedError: the JSON cannot be read.
        """
        extension, _, key = place.partition(":")
        found = self._json(extension).get(key)
        return str(found) if isinstance(found, str | int) else None

    def _json(self, extension: str) -> dict[str, Any]:
        if extension not in self._metadata:
            try:
                parsed = json.loads(self._text(extension) or "{}")
            except (ValueError, RecursionError):
                raise RejectedError("json unreadable") from None
            if not isinstance(parsed, dict):
                raise RejectedError("json unreadable")
            self._metadata[extension] = parsed
        return self._metadata[extension]

    def _text(self, extension: str) -> str:
        member = self._members.get(extension)
        if member is None:
            return ""
        if member.size > _MAX_TEXT:
            raise RejectedError(f"{extension} too long")
        whole = len(member.head) == member.size
        content = member.head if whole else self._archive.read(member.offset, member.offset + member.size)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise RejectedError(f"{extension} is not UTF-8") from None
