"""The members of one sample in a tar file: its key, its files by extension, and the texts in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from harness.data.sources.raw_samples import RejectedError, captions_in
from harness.data.sources.tar import Archive, Member

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_MAX_TEXT = 1 << 24
_MAX_MEMBERS = 256
"""Members of one sample that are looked at; without a limit, a file of millions of one name would fill the memory."""


def key_of(member: Member) -> str | None:
    """The key of the sample that `member` belongs to: its name up to the first dot, as webdataset groups them."""
    match = _NAME.fullmatch(member.name)
    return match[1] if match else None


def by_extension(key: str, group: Iterable[Member]) -> dict[str, Member]:
    """The first member of each extension, in lower case."""
    found: dict[str, Member] = {}
    for member in islice(group, _MAX_MEMBERS):
        found.setdefault(member.name[len(key) + 1 :].lower(), member)
    return found


class SampleTexts:
    """The text members of one sample."""

    def __init__(self, members: dict[str, Member], archive: Archive) -> None:
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
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise RejectedError(f"{extension} is not UTF-8") from None
