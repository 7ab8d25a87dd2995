"""Batches of images: exact order, and pixels that depend on (seed, epoch, sample) alone, however they are loaded.

Pixels stay bytes until they are on the device that trains: a quarter of the transfer, and no arithmetic here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from harness.base.errors import DataError
from harness.base.machine import PREFETCHED, SHARED_MEMORY, cores, decoded_bytes, free_shared_memory
from harness.config.augment import Augment
from harness.data.dataset.dataset import Dataset
from harness.data.dataset.transforms import DRAWS, Pixels, augmented
from harness.data.rng import stream

Drawn: TypeAlias = tuple[int, NDArray[np.int64]]
"""Epoch (0 at first) and sample indices [N] of one batch."""

KEPT_BYTES = 512 * 2**20
"""Images are kept in memory, decoded, when all of them take no more than this."""
MOST_WORKERS = 16
"""Processes that decode, where their number is not stated."""


class ImageBatches:
    """Images of batches that a caller draws.

    With `workers=0` images are decoded here and, if all fit into KEPT_BYTES, kept for later epochs; otherwise
    that many processes decode ahead. Either way gives the same pixels.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: Augment,
        *,
        image_size: int,
        seed: int = 0,
        workers: int | None = 0,
        pin: bool = False,
        views: Sequence[Augment] = (),
    ) -> None:
        """`views`: further augmentations of each image, each drawn on its own.

        `workers=None`: 0 if all images fit into KEPT_BYTES, else this GPU's share of the cores. `pin`: give batches
        in pinned memory.
        """
        self.image_size, self.views = image_size, 1 + len(views)
        self.shape = (1 + len(views), 3, image_size, image_size)[0 if views else 1 :]
        """Of one image's pixels."""
        self._source = _Source(dataset, (augment, *views), image_size, seed, keep=not workers)
        if workers is None:
            share = cores() // max(torch.cuda.device_count(), 1)
            workers = 0 if self._source.keeps else max(1, min(share - 1, MOST_WORKERS))
        self.workers, self._pin = workers, pin

    def check_shared_memory(self, count: int) -> None:
        """Refuse batches of `count` images that do not fit into shared memory, where writing ends in a bus error.

        Raises:
            DataError: the workers need more than is free.
        """
        needed, free = decoded_bytes(count * self.views, self.image_size), free_shared_memory()
        if self.workers and free is not None and needed > free:
            what = f"loader workers need {needed / 1e9:.2f} GB of shared memory for batches of {count} images"
            fix = "start the container with a larger --shm-size, or set resources.loader_workers to 0"
            raise DataError(f"{what}; {free / 1e9:.2f} GB are free", where=str(SHARED_MEMORY), fix=fix)

    def __call__(self, drawn: Iterable[Drawn]) -> Iterator[Tensor]:
        """The pixels [N, 3, H, W] uint8 of each batch in `drawn`, in order; with v views [N, 1 + v, 3, H, W].

        Raises:
            DataError: an image cannot be decoded.
        """
        for pixels in self._loaded(drawn):
            if isinstance(pixels, _Failure):
                raise DataError(pixels.what, where=pixels.where, fix=pixels.fix)
            yield pixels.pin_memory() if self._pin else pixels

    def _loaded(self, drawn: Iterable[Drawn]) -> Iterator[Tensor | _Failure]:
        if self.workers == 0:
            yield from (self._source[batch] for batch in drawn)
            return
        counts: deque[int] = deque()
        loader = DataLoader(
            self._source,
            batch_size=None,
            sampler=self._parts(drawn, counts),
            num_workers=self.workers,
            prefetch_factor=PREFETCHED,
            multiprocessing_context="fork",
        )
        parts = iter(loader)
        for first in parts:
            several = [first, *islice(parts, counts.popleft() - 1)]
            failed = next((one for one in several if isinstance(one, _Failure)), None)
            yield failed or torch.cat([one for one in several if isinstance(one, Tensor)])

    def _parts(self, drawn: Iterable[Drawn], counts: deque[int]) -> Iterator[Drawn]:
        """Each batch in as many parts as there are workers; their number goes to `counts`."""
        for epoch, samples in drawn:
            parts = np.array_split(samples, min(self.workers, len(samples)))
            counts.append(len(parts))
            yield from ((epoch, part) for part in parts)


class _Failure(NamedTuple):
    """A DataError on its way out of a worker: an exception would arrive wrapped in the worker's traceback."""

    what: str
    where: str | None
    fix: str | None


class _Source(TorchDataset[Tensor | _Failure]):
    """Pixels uint8 of a drawn batch, as `ImageBatches` gives them."""

    def __init__(self, dataset: Dataset, augments: Sequence[Augment], size: int, seed: int, *, keep: bool) -> None:
        self._dataset, self._augments, self._size, self._seed = dataset, augments, size, seed
        self._is_fixed = not any(augment.is_random for augment in augments)
        self.keeps = keep and self._bytes_kept() <= KEPT_BYTES
        self._pixels: dict[int, Pixels] = {}
        self._images: dict[int, Image.Image] = {}

    def __getitem__(self, drawn: Drawn) -> Tensor | _Failure:
        epoch, samples = drawn
        try:
            seen = [self._seen(sample, epoch, view) for sample in samples.tolist() for view in range(self._each)]
            pixels = torch.from_numpy(np.stack(seen))
            return pixels if self._each == 1 else pixels.view(-1, self._each, *pixels.shape[1:])
        except DataError as error:
            return _Failure(error.what, error.where, error.fix)

    @property
    def _each(self) -> int:
        return len(self._augments)

    def _bytes_kept(self) -> int:
        if self._is_fixed:
            return len(self._dataset) * 3 * self._size**2
        return int(self._dataset.sizes.prod(axis=1).sum()) * 4

    def _seen(self, sample: int, epoch: int, view: int) -> Pixels:
        augment = self._augments[view]
        if not self._is_fixed:
            chance = stream("augmentation", self._seed, epoch, sample, *([view] if view else [])).random(DRAWS).tolist()
            return augmented(self._image(sample), augment, self._size, chance)
        pixels = self._pixels.get(sample)
        if pixels is None:
            pixels = augmented(self._dataset.image(sample), augment, self._size, ())
            if self.keeps:
                self._pixels[sample] = pixels
        return pixels

    def _image(self, sample: int) -> Image.Image:
        image = self._images.get(sample)
        if image is None:
            image = self._dataset.image(sample)
            if self.keeps:
                self._images[sample] = image
        return image
