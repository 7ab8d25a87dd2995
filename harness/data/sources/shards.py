"""Samples in webdataset shards, grouped as webdataset groups them: neighbours whose names agree up to the first dot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path

from harness.base.errors import DataError
from harness.config.data import WebdatasetData
from harness.config.sources import CaptionFile, SplitPlace
from harness.data.dataset import pictures
from harness.data.sources.quarantine import NOTHING, Quarantine
from harness.data.sources.raw_samples import RawSample, Rejected, RejectedError, one_caption, split_captions
from harness.data.sources.sidecars import Joined
from harness.data.sources.tar import Archive, Member
from harness.data.sources.tar_samples import SampleTexts, by_extension, key_of


def raw_samples(
    data: WebdatasetData,
    files: list[Path],
    folder: Path,
    joins: Mapping[str, Joined] | None = None,
    quarantine: Quarantine = NOTHING,
) -> Iterator[RawSample | Rejected]:
    """The samples of `files` in order; for each that is none, the reason.

    Args:
        joins: captions of the sources that stand in files of their own.
        quarantine: samples to leave out, and damaged shards to read up to the damage.

    Raises:
        DataError: a shard is missing or damaged.
    """
    for file in files:
        location = os.path.relpath(file, folder)
        try:
            with Archive(file) as archive:
                for key, group in groupby(archive.members(), key=key_of):
                    if key is not None:
                        yield _candidate(_Reader(data, archive, location, joins or {}), key, group, quarantine)
        except DataError:
            if file.name not in quarantine.shards:
                raise
            yield Rejected("shard damaged, quarantined", location)


class _Reader:
    """What the samples of one shard are read with."""

    def __init__(self, data: WebdatasetData, archive: Archive, location: str, joins: Mapping[str, Joined]) -> None:
        self.data, self.archive, self.location, self.joins = data, archive, location, joins

    def pseudo(self, key: str, raw: str, texts: SampleTexts) -> dict[str, tuple[str, ...]]:
        """Captions of every source."""
        return {name: self._source(name, key, raw, texts) for name in self.data.pseudo}

    def _source(self, name: str, key: str, raw: str, texts: SampleTexts) -> tuple[str, ...]:
        match source := self.data.pseudo[name]:
            case CaptionFile(join=join):
                return self.joins[name].captions(key if join == "key" else texts.value(join), raw)
            case SplitPlace():
                return split_captions(texts.whole(source.place), source.split)
            case _:
                return texts.at(source)


def _candidate(reader: _Reader, key: str, group: Iterable[Member], quarantine: Quarantine) -> RawSample | Rejected:
    if quarantine.reason(key, reader.location) is not None:
        return Rejected("quarantined", reader.location, key)
    members = by_extension(key, group)
    try:
        image = next((members[name] for name in pictures.EXTENSIONS if name in members), None)
        if image is None:
            raise RejectedError("no image")
        texts = SampleTexts(members, reader.archive)
        raw = one_caption(texts.one(reader.data.raw))
        pseudo = reader.pseudo(key, raw, texts)
    except RejectedError as error:
        return Rejected(str(error), reader.location, key)
    inside = partial(_inside, reader.archive, image.offset)
    return RawSample(key, reader.location, image.offset, image.size, image.head, inside, raw, pseudo, image.name)


def _inside(archive: Archive, offset: int, start: int, stop: int) -> bytes:
    return archive.read(offset + start, offset + stop)
