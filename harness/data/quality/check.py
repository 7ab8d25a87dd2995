"""`harness data check`: everything is read and decoded once; what is bad is counted under its reason and listed."""

from __future__ import annotations

import multiprocessing
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import DataError
from harness.config.data import FileData
from harness.data.dataset.pictures import BadImageError
from harness.data.hashing import hash64
from harness.data.quality.sample_check import look_at_image, odd_caption, odd_image, words
from harness.data.sources.files import FilesOf, caption_files, files_of_source
from harness.data.sources.formats import file_formats
from harness.data.sources.patterns import beside
from harness.data.sources.raw_samples import Candidate, Note, RawSample, Rejected, Skipped
from harness.data.sources.reading import Reading

_EXAMPLES = 3
_LONGEST = 512
"""Captions of more words are counted as of so many."""
_SHOWN = 120
RAW = "raw"


@dataclass
class Findings:
    """What one file, or all of them, holds."""

    samples: int = 0
    """Samples that can be trained on."""
    rejected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are no part of a sample, by reason."""
    notes: list[str] = field(default_factory=list)
    """What was guessed while reading, a sentence each."""
    quarantined: list[Rejected] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)
    """Images and captions that can be used and should be looked at, by what is odd."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    sides: array[int] = field(default_factory=lambda: array("I"))
    """Shorter side of each image in pixels."""
    captions: Counter[str] = field(default_factory=Counter)
    """Captions by source."""
    without: Counter[str] = field(default_factory=Counter)
    """Samples without a caption, by source."""
    lengths: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By source, how many captions have 0, 1, 2... words."""
    hashes: dict[str, array[int]] = field(default_factory=dict)
    """64-bit hashes of `key`, `image` and the captions of each source."""
    overlap: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """By source: pairs, sum of the word overlap with the raw caption, the same with the sample before."""

    absent: list[str] = field(default_factory=list)
    """Sources whose files are not there."""

    def add(self, other: Findings) -> None:
        """Take in what another file holds."""
        self.samples += other.samples
        for mine, theirs in (
            (self.rejected, other.rejected),
            (self.skipped, other.skipped),
            (self.odd, other.odd),
            (self.modes, other.modes),
            (self.forms, other.forms),
            (self.captions, other.captions),
            (self.without, other.without),
        ):
            mine.update(theirs)
        self.quarantined += other.quarantined
        self.notes += [note for note in other.notes if note not in self.notes]
        self.sides.extend(other.sides)
        for name, texts in other.examples.items():
            self.examples[name] = (self.examples.get(name, []) + texts)[:_EXAMPLES]
        for name, hashes in other.hashes.items():
            self.hashes.setdefault(name, _no_hashes()).extend(hashes)
        for mine_, theirs_ in ((self.lengths, other.lengths), (self.overlap, other.overlap)):
            for name, values in theirs_.items():
                mine_[name] = mine_[name] + values if name in mine_ else values  # type: ignore[assignment]


def check_data(data: FileData, cache: Path, workers: int, said: Callable[[str], None]) -> Findings:
    """Read everything that `data` names. A quarantine list that it names is not applied: the check makes it anew.

    Raises:
        DataError: files are missing, or a source's files cannot be used at all.
    """
    total = Findings()
    unfiltered = _unfiltered(data, cache, total.absent)
    files = FilesOf.find(unfiltered, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".check.", dir=cache) as work:
        reading = Reading.begin(unfiltered, files, Path(work), unpack=False)
        for number, found in enumerate(_all(reading, workers), 1):
            total.add(found)
            if number % 50 == 0 or number == len(files.main):
                said(f"{number} of {len(files.main)} files, {total.samples:,} samples good")
        total.notes += [*reading.notes(), *beside(data.location, file_formats(data).suffixes)]
    repeated = _repeated(total.hashes.get("key", _no_hashes()))
    if repeated:
        total.rejected["duplicate key"] += repeated
        total.samples -= repeated
    return total


def _unfiltered(data: FileData, cache: Path, absent: list[str]) -> FileData:
    """`data` without its quarantine list and the sources whose files are not there (yet), which `absent` takes in."""
    pseudo = dict(data.pseudo)
    for name, source in caption_files(data).items():
        try:
            files_of_source(source, cache)
        except DataError as error:
            absent.append(f"source {name!r} was not checked: {error}")
            del pseudo[name]
    return type(data).model_validate({**dict(data), "pseudo": pseudo, "quarantine": None})


def _all(reading: Reading, workers: int) -> Iterator[Findings]:
    if workers <= 1 or len(reading.files.main) == 1:
        yield from (_file(reading, file) for file in reading.files.main)
        return
    global _shared
    _shared = reading  # forked, not pickled: its captions are mapped into memory
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(reading.files.main)), mp_context=context) as pool:
        yield from pool.map(_shared_file, range(len(reading.files.main)))


_shared: Reading | None = None


def _shared_file(number: int) -> Findings:
    assert _shared is not None
    return _file(_shared, _shared.files.main[number])


def _file(reading: Reading, file: Path) -> Findings:
    found = Findings()
    pass_ = _Pass(found, reading.data)
    try:
        for candidate in reading.candidates([file]):
            pass_.take(candidate)
    except DataError as error:
        reason = f"shard {error.what.partition(' inside ')[0].partition(' at byte ')[0].partition(':')[0]}"
        found.rejected[reason] += 1
        found.quarantined.append(Rejected(error.what, file.name))
    return found


class _Pass:
    """One pass over the samples of a file."""

    def __init__(self, found: Findings, data: FileData) -> None:
        self._found, self._shards = found, file_formats(data).in_shards
        self._options = data.pictures
        self._before: dict[str, set[str]] = {}

    def take(self, candidate: Candidate) -> None:
        """Count a sample, or why it is none."""
        match candidate:
            case RawSample():
                self._sample(candidate)
            case Rejected():
                self._reject(candidate)
            case Skipped(reason):
                self._found.skipped[reason] += 1
            case Note(said, count):
                text = f"{count:,} {said}" if count else said
                self._found.notes.append(text)

    def _sample(self, candidate: RawSample) -> None:
        try:
            self._image(candidate)
        except BadImageError as error:
            self._reject(Rejected(str(error), candidate.location, candidate.key))
            return
        except UnicodeEncodeError:
            self._reject(Rejected("key is not UTF-8", candidate.location, candidate.key))
            return
        self._found.samples += 1
        self._texts(candidate)

    def _reject(self, one: Rejected) -> None:
        self._found.rejected[one.reason] += 1
        if one.key is not None and one.key.isprintable():
            self._found.quarantined.append(one if self._shards else one._replace(location=""))

    def _image(self, candidate: RawSample) -> None:
        found = self._found
        key = hash64((f"{candidate.scope}/{candidate.key}" if candidate.scope else candidate.key).encode())
        look = look_at_image(candidate, self._options)
        found.hashes.setdefault("key", _no_hashes()).append(key)
        found.hashes.setdefault("image", _no_hashes()).append(look.digest)
        found.modes[look.mode] += 1
        found.forms[look.form] += 1
        found.sides.append(min(look.width, look.height))
        for what in odd_image(look, candidate.name or candidate.key):
            self._odd(f"image: {what}", candidate.key)

    def _texts(self, candidate: RawSample) -> None:
        everything = {RAW: (candidate.raw,), **candidate.pseudo}
        spoken = set(candidate.raw.lower().split())
        for source, texts in everything.items():
            self._found.without[source] += not texts
            for text in texts:
                self._caption(source, text)
            if source != RAW and texts:
                self._align(source, spoken, set(texts[0].lower().split()))

    def _caption(self, source: str, text: str) -> None:
        found, count = self._found, words(text)
        found.captions[source] += 1
        found.hashes.setdefault(source, _no_hashes()).append(hash64(text.encode()))
        lengths = found.lengths.setdefault(source, np.zeros(_LONGEST + 1, dtype=np.int64))
        lengths[min(count, _LONGEST)] += 1
        for what in odd_caption(text, count):
            self._odd(f"{source} caption: {what}", text)

    def _align(self, source: str, raw: set[str], pseudo: set[str]) -> None:
        before = self._before.get(source)
        if before is not None:
            sums = self._found.overlap.setdefault(source, np.zeros(3))
            sums += (1, _jaccard(raw, pseudo), _jaccard(raw, before))
        self._before[source] = pseudo

    def _odd(self, what: str, example: str) -> None:
        self._found.odd[what] += 1
        shown = self._found.examples.setdefault(what, [])
        if len(shown) < _EXAMPLES:
            shown.append("".join(c if c.isprintable() else "?" for c in example[:_SHOWN]))


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def _no_hashes() -> array[int]:
    return array("Q")


def _repeated(hashes: array[int]) -> int:
    values = np.array(hashes, dtype=np.uint64)
    return len(values) - len(np.unique(values))


def report(found: Findings) -> dict[str, Any]:
    """The findings as JSON data."""
    return {
        "samples": found.samples,
        "rejected": dict(found.rejected.most_common()),
        "skipped": dict(found.skipped.most_common()),
        "survivors": found.samples / max(found.samples + sum(found.rejected.values()), 1),
        "odd": {what: {"count": n, "examples": found.examples[what]} for what, n in found.odd.most_common()},
        "images": {
            "modes": dict(found.modes.most_common()),
            "formats": dict(found.forms.most_common()),
            "shorter_side_px": _percentiles(np.array(found.sides)),
            "same_file_as_another": _repeated(found.hashes.get("image", _no_hashes())),
        },
        "captions": {source: _captions(found, source) for source in found.captions},
        "warnings": warnings(found),
    }


def _captions(found: Findings, source: str) -> dict[str, Any]:
    lengths = found.lengths[source]
    told: dict[str, Any] = {
        "captions": found.captions[source],
        "samples_without": found.without[source],
        "same_as_another": _repeated(found.hashes[source]),
        "words": _percentiles(np.repeat(np.arange(len(lengths)), lengths)),
    }
    if source in found.overlap:
        pairs, own, shifted = found.overlap[source].tolist()
        told |= {"words_shared_with_raw": own / pairs, "words_shared_with_the_raw_one_after": shifted / pairs}
    return told


def _percentiles(values: NDArray[np.int64]) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"p{level}": float(np.percentile(values, level)) for level in (0, 5, 50, 95, 100)}


MIN_PAIRS = 200


def warnings(found: Findings) -> list[str]:
    """What a person should look at before training."""
    told = [*found.absent, *found.notes]
    for source, (pairs, own, shifted) in found.overlap.items():
        if pairs >= MIN_PAIRS and own <= 1.05 * shifted:
            told.append(
                f"captions of {source!r} share no more words with their own sample's raw caption "
                f"({own / pairs:.3f}) than with the next one's ({shifted / pairs:.3f}): they may be misaligned"
            )
    for source, without in found.without.items():
        if without:
            told.append(f"{without:,} samples have no caption of {source!r} and are left out where it is declared")
    return told
