"""Samples in webdataset shards, grouped as webdataset groups them: neighbours whose names agree up to the first dot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path

from harness.base.errors import DataError
from harness.config.data import WebdatasetData
from harness.config.sources import CaptionFile, SplitPlace
from harness.data.sources.loose import LooseFiles
from harness.data.sources.options import ReadOptions
from harness.data.sources.patterns import IMAGES
from harness.data.sources.quarantine import Quarantine
from harness.data.sources.raw_samples import (
    Candidate,
    RawSample,
    Rejected,
    RejectedError,
    Skipped,
    one_caption,
    split_captions,
)
from harness.data.sources.sidecars import Joined
from harness.data.sources.tar import Archive, Member
from harness.data.sources.tar_samples import Container, SampleTexts, by_extension, grouped


def raw_samples(data: WebdatasetData, files: list[Path], options: ReadOptions) -> Iterator[Candidate]:
    """The samples of `files`, tar files or folders of loose files, in order; for each that is none, the reason.

    Raises:
        DataError: a shard is missing or damaged.
    """
    for file in files:
        location = os.path.relpath(file, options.root)
        try:
            with LooseFiles(file) if file.is_dir() else Archive(file) as archive:
                reader = _Reader(data, archive, location, options.joins)
                for key, group in grouped(archive.members(), archive.skipped):
                    yield _candidate(reader, key, group, options.quarantine)
        except DataError:
            if file.name not in options.quarantine.shards:
                raise
            yield Rejected("shard damaged, quarantined", location)
        for reason, count in archive.skipped.items():
            yield from repeat(Skipped(reason), count)


class _Reader:
    """What the samples of one shard are read with."""

    def __init__(self, data: WebdatasetData, archive: Container, location: str, joins: Mapping[str, Joined]) -> None:
        self.data, self.archive, self.location, self.joins = data, archive, location, joins

    def pseudo(self, key: str, raw: str, texts: SampleTexts) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """Captions of every source; and why those that could not be read have none."""
        found, faults = {}, {}
        for name in self.data.pseudo:
            try:
                found[name] = self._source(name, key, raw, texts)
            except RejectedError as error:
                found[name], faults[name] = (), str(error)
        return found, faults

    def _source(self, name: str, key: str, raw: str, texts: SampleTexts) -> tuple[str, ...]:
        match source := self.data.pseudo[name]:
            case CaptionFile(join=join):
                if join == "key":
                    return self.joins[name].of_key(key, self.location, raw)
                return self.joins[name].captions(texts.value(join), raw)
            case SplitPlace():
                return split_captions(texts.whole(source.place), source.split)
            case _:
                return texts.at(source)


def _candidate(reader: _Reader, key: str, group: Iterable[Member], quarantine: Quarantine) -> RawSample | Rejected:
    if quarantine.reason(key, reader.location) is not None:
        return Rejected("quarantined", reader.location, key)
    members = by_extension(key, group, reader.archive.skipped)
    try:
        image = next((members[name] for name in IMAGES if name in members), None)
        if image is None:
            raise RejectedError("no image")
        texts = SampleTexts(members, reader.archive)
        raw = one_caption(texts.one(reader.data.raw))
        pseudo, faults = reader.pseudo(key, raw, texts)
    except RejectedError as error:
        return Rejected(str(error), reader.location, key)
    inside = partial(_inside, reader.archive, image.offset)
    place, offset = reader.archive.place(image, reader.location)
    return RawSample(
        key,
        place,
        offset,
        image.size,
        image.head,
        inside,
        raw,
        pseudo,
        name=image.name,
        scope=reader.location,
        faults=faults,
    )


def _inside(archive: Container, offset: int, start: int, stop: int) -> bytes:
    return archive.read(offset + start, offset + stop)
