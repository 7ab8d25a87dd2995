"""Samples by number: images and captions of whatever a data spec names."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from PIL import Image

from harness.base.errors import DataError
from harness.base.log import say
from harness.base.sums import is_damaged, make_room
from harness.config.data import Data, EmbeddedWorld, FileData, FileSpec, MixtureData, Pictures, unknown_data
from harness.data.dataset import pictures
from harness.data.dataset.index import INDEX, ROWS, pseudo_column
from harness.data.dataset.order import epoch_order, mixed_order
from harness.data.dataset.pictures import BadImageError
from harness.data.proportions import Proportions
from harness.data.sources import arrow
from harness.data.sources.inspection import REPORT, Indexed, indexed, inspect_data
from harness.data.sources.raw_samples import shard_key
from harness.data.synthetic.embedded import home
from harness.data.synthetic.materialise import as_files
from harness.data.synthetic.truth import TRUTH, Truth, load_truth
from harness.runs.record import DataReport

_OPEN_FILES = 128


def open_dataset(data: Data, cache: Path) -> Dataset:
    """The samples of `data`; what is embedded is generated first, what has no index is indexed.

    Raises:
        DataError: data is missing or damaged, or holds no usable sample.
        StoreError: `cache` cannot be written.
    """
    match data:
        case EmbeddedWorld():
            index = sound_index(as_files(data, cache), cache)
            return Dataset(index._replace(report=inspect_data(data, cache)), load_truth(home(data, cache) / TRUTH))
        case FileSpec():
            inspect_data(data, cache)
            return Dataset(sound_index(data, cache), None, data.pictures)
        case MixtureData():
            parts = {name: open_dataset(one.data, cache) for name, one in data.sources.items()}
            sizes, weights = [len(part) for part in parts.values()], [one.weight for one in data.sources.values()]
            return Mixture(parts, Proportions.of(sizes, weights), inspect_data(data, cache))
        case _:
            raise unknown_data(data)


def sound_index(data: FileData, cache: Path) -> Indexed:
    """The index of `data`, built again if it is damaged. Reads all of it; raises as `inspect_data`."""
    found = indexed(data, cache)
    if is_damaged(found.folder):
        say(f"the index {found.folder} is damaged: the data is read again")
        make_room(found.folder / REPORT)
        (found.folder / REPORT).unlink(missing_ok=True)
        found = indexed(data, cache)
    return found


class Dataset:
    """Samples numbered 0 to len - 1, in the order of their files.

    Holds no image: each is read by its place when asked for. Usable in forked worker processes.
    """

    def __init__(self, index: Indexed, truth: Truth | None, options: Pictures | None = None) -> None:
        self.report: DataReport = index.report
        self.sources: tuple[str, ...] = index.sources
        """Names of the pseudo-caption sources."""
        self.truth = truth
        """Which caption matches which image, where that is known."""
        self._options = options or Pictures()
        self._keys_repeat = index.keys_repeat
        self._root = index.root
        self._files = _Files()
        with pa.memory_map(str(index.folder / INDEX)) as mapped:
            reader = pa.ipc.open_file(mapped)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self._rows: NDArray[np.int64] = np.load(index.folder / ROWS)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def epoch_samples(self) -> int:
        """Images in an epoch."""
        return len(self)

    @property
    def proportions(self) -> Proportions:
        """How often each of its sources is visited."""
        return Proportions((len(self),), (Fraction(1),), len(self))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order [epoch_samples]: a function of the seed and the epoch."""
        return epoch_order(len(self), seed, epoch)

    @property
    def keys(self) -> list[str]:
        """The key of each sample, with its shard where several shards have samples of one key."""
        keys = [str(key) for key in self._column("key").to_pylist()]
        if not self._keys_repeat:
            return keys
        return [
            shard_key(str(shard), key) for shard, key in zip(self._column("location").to_pylist(), keys, strict=True)
        ]

    def keys_of(self, samples: Iterable[int]) -> list[str]:
        """The keys of some samples, as in `keys`."""
        return [self._key(sample) for sample in samples]

    def _key(self, i: int) -> str:
        key = str(self._cell(i, "key"))
        return shard_key(str(self._cell(i, "location")), key) if self._keys_repeat else key

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Width and height [S, 2] of the images in pixels."""
        return np.stack([arrow.numbers(self._column(name)) for name in ("width", "height")], axis=1)

    def image(self, i: int) -> Image.Image:
        """The image of sample `i`, as RGB.

        Raises:
            DataError: the file changed or is damaged where its header did not show it.
        """
        return self.decoded(i, self.content(i))

    def content(self, i: int) -> bytes:
        """The image file of sample `i`.

        Raises:
            DataError: the file that holds it cannot be read.
        """
        location, offset, size = (self._cell(i, name) for name in ("location", "offset", "size"))
        try:
            return self._files.read(self._root / location, offset, size)
        except OSError as error:
            what = f"the image of sample {self._cell(i, 'key')} cannot be read ({error.strerror or error})"
            raise DataError(what, where=str(self._root / location), fix="restore the file") from error

    def decoded(self, i: int, content: bytes) -> Image.Image:
        """The image of sample `i` from its `content`; several threads may decode at once.

        Raises:
            DataError: it is damaged where its header did not show it.
        """
        try:
            return pictures.decode(content, self._options)
        except BadImageError as error:
            raise self._undecodable(i, error) from error

    def _undecodable(self, i: int, error: Exception) -> DataError:
        return DataError(
            f"image cannot be decoded ({error})",
            where=f"{self._root / self._cell(i, 'location')}: {self._cell(i, 'key')}",
            fix='repair it, or set data.verify = "decode" to leave such samples out',
        )

    def raw(self, i: int) -> str:
        """The raw caption of sample `i`."""
        return str(self._cell(i, "raw"))

    def pseudo(self, source: str, i: int) -> tuple[str, ...]:
        """The pseudo-captions of sample `i` from `source`.

        Raises:
            DataError: there is no such source.
        """
        self._require(source)
        return tuple(self._cell(i, pseudo_column(source)))

    def caption_counts(self, source: str) -> NDArray[np.int64]:
        """How many pseudo-captions of `source` each sample has [S]; at least 1.

        Raises:
            DataError: there is no such source.
        """
        self._require(source)
        return arrow.numbers(pyarrow.compute.list_value_length(self._column(pseudo_column(source))))

    def captions_digest(self, source: str | None) -> str:
        """A digest of the captions of `source` (None: the raw ones), sample by sample: equal captions, equal digest.

        Raises:
            DataError: there is no such source.
        """
        if source is not None:
            self._require(source)
        counts, lengths, texts = (hashlib.sha256() for _ in range(3))
        for column in self._parts("raw" if source is None else pseudo_column(source)):
            if source is not None:
                counts.update(arrow.numbers(pyarrow.compute.list_value_length(column)).tobytes())
                column = column.flatten()
            lengths.update(arrow.numbers(pyarrow.compute.binary_length(column)).tobytes())
            texts.update(arrow.text_bytes(column))
        return hashlib.sha256(counts.digest() + lengths.digest() + texts.digest()).hexdigest()

    def _parts(self, name: str) -> Iterator[Any]:
        """A column of the samples, batch by batch."""
        for batch, start in zip(self._batches, self._starts, strict=False):
            first, last = np.searchsorted(self._rows, [start, start + batch.num_rows])
            yield batch.column(name).take(arrow.integers(self._rows[first:last] - start))

    def _require(self, source: str) -> None:
        if source not in self.sources:
            known = ", ".join(self.sources) or "none"
            raise DataError(
                f"no sample has captions from the source {source!r} (there are: {known})",
                where="captions.source",
                fix="name one of these, or declare it in data.pseudo",
            )

    def _cell(self, i: int, column: str) -> Any:
        row = int(self._rows[i])
        number = bisect_right(self._starts, row) - 1
        return self._batches[number].column(column)[row - self._starts[number]].as_py()

    def _column(self, name: str) -> Any:
        column = pa.chunked_array([batch.column(name) for batch in self._batches])
        return column.take(arrow.integers(self._rows)).combine_chunks()


class Mixture(Dataset):
    """Data sets one after the other, numbered through, in the order of their names."""

    def __init__(self, parts: Mapping[str, Dataset], proportions: Proportions, report: DataReport) -> None:
        self._names, self._parts_of = tuple(parts), tuple(parts.values())
        self._offsets = np.cumsum([0, *map(len, self._parts_of)])
        self._proportions = proportions
        self.report = report
        shared = set.intersection(*(set(part.sources) for part in self._parts_of))
        self.sources = tuple(source for source in self._parts_of[0].sources if source in shared)
        self.truth = None

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def epoch_samples(self) -> int:
        """Images in an epoch."""
        return self._proportions.epoch

    @property
    def proportions(self) -> Proportions:
        """How often each source is visited."""
        return self._proportions

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order [epoch_samples]."""
        return mixed_order(self._proportions, seed, epoch)

    @property
    def keys(self) -> list[str]:
        """The key of each sample, below its source's name."""
        named = zip(self._names, self._parts_of, strict=True)
        return [f"{name}/{key}" for name, part in named for key in part.keys]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Width and height [S, 2] of the images in pixels."""
        return np.concatenate([part.sizes for part in self._parts_of])

    def content(self, i: int) -> bytes:
        """The image file of sample `i`; raises as its source's."""
        number, row = self._place(i)
        return self._parts_of[number].content(row)

    def decoded(self, i: int, content: bytes) -> Image.Image:
        """The image of sample `i` from its `content`; raises as its source's."""
        number, row = self._place(i)
        return self._parts_of[number].decoded(row, content)

    def raw(self, i: int) -> str:
        """The raw caption of sample `i`."""
        number, row = self._place(i)
        return self._parts_of[number].raw(row)

    def pseudo(self, source: str, i: int) -> tuple[str, ...]:
        """The pseudo-captions of sample `i` from `source`, which every source of the mixture has."""
        self._require(source)
        number, row = self._place(i)
        return self._parts_of[number].pseudo(source, row)

    def caption_counts(self, source: str) -> NDArray[np.int64]:
        """How many pseudo-captions of `source` each sample has [S]."""
        self._require(source)
        return np.concatenate([part.caption_counts(source) for part in self._parts_of])

    def captions_digest(self, source: str | None) -> str:
        """A digest of the captions of `source` (None: the raw ones), source by source."""
        if source is not None:
            self._require(source)
        digests = [part.captions_digest(source) for part in self._parts_of]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _key(self, i: int) -> str:
        number, row = self._place(i)
        return f"{self._names[number]}/{self._parts_of[number]._key(row)}"

    def _place(self, i: int) -> tuple[int, int]:
        """The source of sample `i`, and its number there."""
        number = int(np.searchsorted(self._offsets, i, side="right")) - 1
        return number, int(i - self._offsets[number])


class _Files:
    """Files kept open between reads, as few as the system allows."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, file: Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Positional, so forked processes may share the descriptors."""
        descriptor = self._open.pop(file, None)
        if descriptor is None:
            descriptor = os.open(file, os.O_RDONLY)
        self._open[file] = descriptor
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return os.pread(descriptor, size, offset)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
