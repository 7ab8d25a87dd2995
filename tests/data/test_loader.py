from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.base.errors import DataError
from harness.config.augment import Augment, CropAugment, FFFAugment, NoAugment
from harness.config.data import WebdatasetData
from harness.data.dataset import loader
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.dataset.loader import Drawn, ImageBatches
from harness.data.dataset.order import epoch_order
from harness.data.dataset.transforms import augmented
from tests.data.made import sample, two_shards, write_tar

AUGMENTS: list[Augment] = [NoAugment(), CropAugment(), FFFAugment()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    return open_dataset(WebdatasetData(shards=str(two_shards(folder / "shards"))), folder / "cache")


def batches(dataset: Dataset, augment: Augment, workers: int = 0, seed: int = 4) -> ImageBatches:
    return ImageBatches(dataset, augment, image_size=24, seed=seed, workers=workers)


def drawn(samples: int, epochs: int = 3, size: int = 3) -> list[Drawn]:
    plan: list[Drawn] = []
    for epoch in range(epochs):
        order = epoch_order(samples, 0, epoch)
        plan += [(epoch, order[start : start + size]) for start in range(0, samples, size)]
    return plan


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: augment.kind)
def test_images_come_in_exact_order_whoever_loads_them(dataset: Dataset, augment: Augment) -> None:
    plan = drawn(len(dataset))
    by_workers = [list(batches(dataset, augment, workers)(iter(plan))) for workers in (0, 1, 2)]
    for one, two, three, (epoch, samples) in zip(*by_workers, plan, strict=True):
        assert one.shape == (len(samples), 3, 24, 24)
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert (epoch, len(samples)) <= (2, 3)


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: augment.kind)
def test_going_on_in_the_middle_gives_what_would_have_come(dataset: Dataset, augment: Augment) -> None:
    plan = drawn(len(dataset))
    whole = list(batches(dataset, augment)(plan))
    resumed = list(batches(dataset, augment)(plan[5:]))
    assert all(torch.equal(before, after) for before, after in zip(whole[5:], resumed, strict=True))


def test_plain_images_are_decoded_and_cropped(dataset: Dataset) -> None:
    (images,) = batches(dataset, NoAugment())([(0, np.array([7, 2, 7]))])
    for image, number in zip(images, (7, 2, 7), strict=True):
        assert np.array_equal(image.numpy(), augmented(dataset.image(number), NoAugment(), 24, ()))


@pytest.mark.parametrize("augment", AUGMENTS[1:], ids=lambda augment: augment.kind)
def test_augmentation_depends_on_seed_epoch_and_sample_and_nothing_else(dataset: Dataset, augment: Augment) -> None:
    one = np.array([3])
    alone, again, later = batches(dataset, augment)([(0, one), (0, one), (1, one)])
    (among,) = batches(dataset, augment)([(0, np.array([5, 3, 1]))])
    (other_seed,) = batches(dataset, augment, seed=5)([(0, one)])
    assert torch.equal(alone, again)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(alone, later)
    assert not torch.equal(alone, other_seed)


def test_the_global_generators_are_left_alone(dataset: Dataset) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    list(batches(dataset, FFFAugment())(drawn(len(dataset), epochs=1)))
    after = torch.rand(1).item(), np.random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    assert after == (torch.rand(1).item(), np.random.random())


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: augment.kind)
def test_keeping_images_in_memory_changes_nothing(
    dataset: Dataset, augment: Augment, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = drawn(len(dataset), epochs=2)
    kept = list(batches(dataset, augment)(plan))
    monkeypatch.setattr(loader, "KEPT_BYTES", 1000)
    read_again = list(batches(dataset, augment)(plan))
    assert all(torch.equal(one, two) for one, two in zip(kept, read_again, strict=True))


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: augment.kind)
def test_an_image_that_fits_is_read_once(dataset: Dataset, augment: Augment, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    image = Dataset.image

    def counted(self: Dataset, i: int) -> object:
        reads.append(i)
        return image(self, i)

    monkeypatch.setattr(Dataset, "image", counted)
    list(batches(dataset, augment)(drawn(len(dataset))))
    assert sorted(reads) == list(range(len(dataset)))
    monkeypatch.setattr(loader, "KEPT_BYTES", 1000)
    reads.clear()
    list(batches(dataset, augment)(drawn(len(dataset))))
    assert len(reads) == 3 * len(dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_drawn_from_an_endless_plan(dataset: Dataset, workers: int) -> None:
    def endless() -> Iterator[tuple[int, NDArray[np.int64]]]:
        epoch = 0
        while True:
            yield epoch, epoch_order(len(dataset), 0, epoch)
            epoch += 1

    found = list(islice(batches(dataset, CropAugment(), workers)(endless()), 3))
    assert [len(images) for images in found] == [len(dataset)] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_went_bad_stops_with_one_sentence(tmp_path: Path, workers: int) -> None:
    shard = write_tar(tmp_path / "a.tar", [(f"k{number}", sample(number, form="PNG")) for number in range(4)])
    dataset = open_dataset(WebdatasetData(shards=str(shard)), tmp_path / "cache")
    content = bytearray(shard.read_bytes())
    third = content.index(b"k2.png") + 512
    content[third + 60 : third + 90] = bytes(30)
    shard.write_bytes(content)
    images = batches(dataset, NoAugment(), workers)([(0, np.array([0])), (0, np.array([1, 2]))])
    assert next(images).shape == (1, 3, 24, 24)
    with pytest.raises(DataError) as caught:
        next(images)
    assert f"{shard}: k2: image cannot be decoded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_batch_is_shared_by_the_workers(dataset: Dataset) -> None:
    """A batch is there after its share of the time, and shared memory holds two batches ahead, not two per worker."""
    counts: deque[int] = deque()
    plan = [(0, np.arange(8)), (1, np.arange(2))]
    parts = list(batches(dataset, NoAugment(), workers=3)._parts(iter(plan), counts))
    assert [(epoch, part.tolist()) for epoch, part in parts] == [
        (0, [0, 1, 2]),
        (0, [3, 4, 5]),
        (0, [6, 7]),
        (1, [0]),
        (1, [1]),
    ]
    assert list(counts) == [3, 2]
