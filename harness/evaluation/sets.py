"""Evaluation sets: samples, labels or captions, and images that are read from their shards when asked for."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from harness.base.errors import DataError
from harness.base.files import open_plain, read_bytes
from harness.config.protocols import set_name
from harness.config.suites import annotations_at, has_long_captions
from harness.evaluation.captioned import CaptionedImage
from harness.evaluation.conditions import Samples
from harness.evaluation.layout import HIDDEN_SEPARATORS, SPLIT, Layout, describe, describe_captioned, describe_pairs
from harness.evaluation.pairs import Box, Group, check_group
from harness.runs.record import Task

IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg")
_IMAGE = re.compile(rf"(\d[.])?({'|'.join(IMAGE_SUFFIXES)})")
"""Of a sample, or of one of the images of a pair."""
# webdataset's rules: the key ends at the first dot of the file name, and what it calls metadata is no sample.
_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_METADATA = re.compile(r"__[^/]*__($|/)")


class ImageBytes(NamedTuple):
    """Where an encoded image lies."""

    shard: Path
    offset: int
    size: int
    box: Box | None = None
    """The part of it that is shown; None for all of it."""


class PairGroup(NamedTuple):
    """Images and texts of a pair task: text i describes image i, further ones are wrong."""

    key: str
    images: tuple[int, ...]
    """Numbers of the set's images."""
    texts: tuple[str, ...]
    category: str = ""


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A set of N images with labels or captions, in the order of its shards."""

    layout: Layout
    keys: tuple[str, ...]
    """[N] sample keys."""
    images: tuple[ImageBytes, ...]
    """[N]."""
    labels: tuple[int, ...]
    """[N] class indices; empty for retrieval."""
    captions: tuple[tuple[str, ...], ...]
    """[N] captions of each image; empty for classification."""
    digest: str
    """sha256 over keys, labels or captions, and the encoded images, in order: the same samples, the same digest."""
    targets: tuple[tuple[int, ...], ...] = ()
    """[N] class indices of each image of a multi-label set; empty otherwise."""
    groups: tuple[PairGroup, ...] = ()
    """[G] of a pair task, whose `keys` and `images` are those of its N different images; empty otherwise."""
    cut: int = 0
    """Captions files that a line separator which editors do not show cuts at."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def name(self) -> str:
        """As in `shapes` of the metric `shapes/acc1`."""
        return self.layout.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What looks wrong and is measured as clip-benchmark does, a sentence each."""
        found = list(self.layout.notes)
        blank = sum(not caption.strip() for captions in self.captions for caption in captions)
        if blank:
            whole = sum(map(len, self.captions))
            found.append(f"{blank:,} of {whole:,} captions are blank lines, and each is a query")
        if alike := sum(len(set(group.texts)) < len(group.texts) for group in self.groups):
            found.append(f"{alike:,} of {len(self.groups):,} pairs have equal texts, and count as wrong")
        if self.cut:
            found.append(
                f"{self.cut:,} samples have captions with a line separator (U+2028 or its like) that cuts them"
            )
        present = {*self.labels, *(label for labels in self.targets for label in labels)}
        absent = [name for label, name in enumerate(self.layout.classnames) if label not in present]
        if absent:
            whole = len(self.layout.classnames)
            found.append(f"{len(absent):,} of {whole:,} class names have no sample ({absent[0]!r} first)")
        return tuple(found)

    @property
    def samples(self) -> Samples:
        """Which samples it has."""
        return Samples(len(self.groups) or len(self), self.digest)

    @property
    def task(self) -> Task:
        """What the set is for."""
        return self.layout.task

    def called(self, name: str) -> EvaluationSet:
        """The same samples under another name."""
        return replace(self, layout=replace(self.layout, name=name))

    def image(self, index: int) -> Image.Image:
        """The decoded image of a sample, RGB. Safe to call from several threads.

        Raises:
            DataError: it cannot be decoded. An evaluation never leaves a sample out.
        """
        shard, offset, size, box = self.images[index]
        try:
            with open_plain(shard) as stream:
                stream.seek(offset)
                image = Image.open(io.BytesIO(stream.read(size))).convert("RGB")
                return image if box is None else image.crop(box)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f'the image of sample "{self.keys[index]}" cannot be decoded ({error})',
                where=str(shard),
                fix="write the set again without it; an evaluation leaves no sample out",
            ) from error


@dataclass
class _Sample:
    """A sample as its members are met: the text of its label or captions, and where its images lie."""

    shard: Path
    key: str
    images: dict[str, tuple[ImageBytes, str]]
    texts: dict[str, bytes]

    def error(self, what: str, fix: str) -> DataError:
        return DataError(f'sample "{self.key}" {what}', where=str(self.shard), fix=fix)

    def image(self) -> tuple[ImageBytes, str]:
        for suffix in IMAGE_SUFFIXES:
            if suffix in self.images:
                return self.images[suffix]
        raise self.error("has no image", f"add {self.key}.jpg, .png or .webp")

    def group(self) -> list[tuple[ImageBytes, str]]:
        """The images of a pair: KEY.jpg, or KEY.0.jpg and KEY.1.jpg."""
        numbered = sorted((name, one) for name, one in self.images.items() if name not in IMAGE_SUFFIXES)
        if [int(name.partition(".")[0]) for name, _ in numbered] != list(range(len(numbered))):
            raise self.error("has images that are not numbered 0, 1", f"call them {self.key}.0.jpg, {self.key}.1.jpg")
        return [one for _, one in numbered] or [self.image()]

    def text(self, suffix: str) -> str:
        if suffix not in self.texts:
            raise self.error(f"has no .{suffix} file", "write the set again with one for every image")
        try:
            return self.texts[suffix].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"has a .{suffix} file that is not UTF-8", "write it as UTF-8") from error

    def label(self, layout: Layout) -> int | None:
        """The number of its class; None if the set leaves its label out."""
        text, classes = self.text("cls").strip(), len(layout.classnames)
        if layout.labels and text.isdecimal():
            return layout.labels.index(int(text)) if int(text) in layout.labels else None
        if not text.isdecimal() or int(text) >= classes:
            raise self.error(
                f"has the label {text!r}, and there are {classes} classes", f"labels go from 0 to {classes - 1}"
            )
        return int(text)

    def targets(self, classes: int) -> tuple[int, ...]:
        """The classes that a multi-label sample has, from a vector of 0 and 1 as numpy saves it."""
        if "npy" not in self.texts:
            raise self.error("has no .npy file", "write the set again with a vector of 0 and 1 for every image")
        try:
            vector = np.lib.format.read_array(io.BytesIO(self.texts["npy"]), allow_pickle=False)  # type: ignore[no-untyped-call]
        except (EOFError, MemoryError, SyntaxError, ValueError) as error:
            raise self.error(f"has a .npy file that cannot be read ({error})", "write it with numpy.save") from error
        if vector.shape != (classes,) or not np.isin(vector, (0, 1)).all():
            raise self.error(f"has labels that are not {classes} zeros and ones", "write one for every class")
        return tuple(np.flatnonzero(vector).tolist())

    def captions(self) -> tuple[str, ...]:
        captions = tuple(self.text("txt").splitlines())
        if not any(caption.strip() for caption in captions):
            raise self.error("has no captions", f"write them into {self.key}.txt, one per line, or leave the image out")
        return captions


def read_set(path: Path, name: str | None = None, split: str = SPLIT) -> EvaluationSet:
    """The part `split` of the set at `path`, every shard read once for its index and digest; images stay on disk.

    Raises:
        DataError: the layout is not complete, a shard is damaged, or a sample has no image, label or captions.
    """
    if (annotations := annotations_at(path)) is not None:
        return _read_pairs(*describe_pairs(annotations, path, name or set_name(str(path)), split))
    if has_long_captions(path):
        return _read_captioned(*describe_captioned(path, name or set_name(str(path)), split))
    layout = describe(path, name, split)
    digest = hashlib.sha256()
    keys: list[str] = []
    images: list[ImageBytes] = []
    labels: list[int] = []
    captions: list[tuple[str, ...]] = []
    targets: list[tuple[int, ...]] = []
    groups: list[PairGroup] = []
    cut = 0
    for sample in (sample for shard in layout.shards for sample in _samples(shard)):
        if layout.task == "image_caption_selection":
            found, texts = sample.group(), sample.captions()
            check_group(sample.key, len(found), texts, str(sample.shard))
            groups.append(PairGroup(sample.key, tuple(range(len(images), len(images) + len(found))), texts))
            keys += [sample.key] * len(found)
            images += [image for image, _ in found]
            digest.update(json.dumps([sample.key, texts, [content for _, content in found]]).encode())
            continue
        image, content = sample.image()
        match layout.task:
            case "zeroshot_retrieval":
                captions.append(sample.captions())
                cut += HIDDEN_SEPARATORS.search(sample.text("txt")) is not None
            case "zeroshot_multilabel":
                targets.append(sample.targets(len(layout.classnames)))
            case _:
                if (label := sample.label(layout)) is None:
                    continue
                labels.append(label)
        keys.append(sample.key)
        images.append(image)
        digest.update(json.dumps([sample.key, labels[-1:] or targets[-1:], captions[-1:], content]).encode())
    if not keys:
        raise DataError(
            "holds no samples", where=str(path), fix="write KEY.jpg with KEY.cls or KEY.txt into its shards"
        )
    of_samples = (tuple(keys), tuple(images), tuple(labels), tuple(captions))
    return EvaluationSet(layout, *of_samples, digest.hexdigest(), tuple(targets), tuple(groups), cut)


def _read_pairs(layout: Layout, published: Sequence[Group]) -> EvaluationSet:
    """A pair task as its authors publish it; each different image, or part of one, is there once."""
    number: dict[tuple[str, Box | None], int] = {}
    groups = []
    for one in published:
        images = tuple(number.setdefault(image, len(number)) for image in one.images)
        groups.append(PairGroup(one.key, images, one.texts, one.category))
    sizes, digests = {}, {}
    for file in {file for file, _ in number}:
        content = _content(Path(file))
        sizes[file], digests[file] = len(content), hashlib.sha256(content).hexdigest()
    shown = [(digests[file], box) for file, box in number]
    digest = hashlib.sha256(json.dumps([shown, groups]).encode()).hexdigest()
    keys = tuple(Path(file).name for file, _ in number)
    places = tuple(ImageBytes(Path(file), 0, sizes[file], box) for file, box in number)
    return EvaluationSet(layout, keys, places, (), (), digest, groups=tuple(groups))


def _read_captioned(layout: Layout, published: Sequence[CaptionedImage]) -> EvaluationSet:
    """Images and captions as their authors publish them."""
    digest, places = hashlib.sha256(), []
    for one in published:
        content = _content(one.image)
        places.append(ImageBytes(one.image, 0, len(content)))
        digest.update(json.dumps([one.key, [], [[one.caption]], hashlib.sha256(content).hexdigest()]).encode())
    keys, captions = tuple(one.key for one in published), tuple((one.caption,) for one in published)
    return EvaluationSet(layout, keys, tuple(places), (), captions, digest.hexdigest())


def _content(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=str(file), fix="restore the image") from error


def _samples(shard: Path) -> Iterator[_Sample]:
    """The samples of a shard: consecutive members with one key, as webdataset groups them."""
    current: _Sample | None = None
    for key, suffix, position, content in _members(shard):
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = _Sample(shard, key, {}, {})
        if suffix in current.images or suffix in current.texts:
            raise current.error(f"has two .{suffix} files", "write the shard again with each once")
        if _IMAGE.fullmatch(suffix):
            current.images[suffix] = (position, hashlib.sha256(content).hexdigest())
        else:
            current.texts[suffix] = content
    if current is not None:
        yield current


def _members(shard: Path) -> Iterator[tuple[str, str, ImageBytes, bytes]]:
    """Key, suffix, place and content of each sample file of a shard."""
    end = 0
    try:
        with open_plain(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                match = _MEMBER.match(member.name)
                if match is not None and member.isreg() and not _METADATA.match(member.name):
                    place = ImageBytes(shard, member.offset_data, member.size)
                    yield match[1], match[2].lower(), place, _bytes(stream, place)
            # tarfile takes an archive that was cut between two files for a shorter one.
            if any(_bytes(stream, ImageBytes(shard, end, tarfile.BLOCKSIZE))):
                raise tarfile.ReadError("unexpected end of archive")
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"the shard cannot be read ({error})", where=str(shard), fix="write or copy it again"
        ) from error


def _bytes(stream: BinaryIO, place: ImageBytes) -> bytes:
    stream.seek(place.offset)
    content = stream.read(place.size)
    if len(content) < place.size:
        raise tarfile.ReadError("unexpected end of data")
    return content
