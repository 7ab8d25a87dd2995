from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from clip_benchmark.datasets.builder import build_dataset
from torch.utils.data import DataLoader

from harness.base.errors import StoreError
from harness.config.data import Data, DigitsData, ShapesData, WebdatasetData
from harness.data import embedded_sets, inspect_data, materialise
from harness.data.dataset.dataset import open_dataset
from harness.data.synthetic.embedded import home
from harness.data.synthetic.shapes import all_combinations, draw, evaluation_attributes
from tests.data.made import SMALL_WORLD
from tests.data.reading import claims_of_shapes

DIGITS = DigitsData(test_samples=1000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    for data in (SMALL_WORLD, DIGITS):
        materialise(data, folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_generating_twice_gives_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    materialise(SMALL_WORLD, tmp_path)
    assert contents(home(SMALL_WORLD, tmp_path)) == contents(home(SMALL_WORLD, cache))
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_webdataset_reads_the_training_shards_as_we_do(cache: Path) -> None:
    dataset = open_dataset(SMALL_WORLD, cache)
    urls = sorted(str(path) for path in (home(SMALL_WORLD, cache) / "train").iterdir())
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(theirs) == len(dataset) == SMALL_WORLD.train_samples
    assert dataset.report == inspect_data(SMALL_WORLD, cache)
    for i, sample in enumerate(theirs):
        assert sample["__key__"] == dataset.keys[i]
        assert sample["txt"] == dataset.raw(i)
        assert {source: list(dataset.pseudo(source, i)) for source in dataset.sources} == sample["json"]
        assert np.array_equal(np.asarray(sample["png"].convert("RGB")), np.asarray(dataset.image(i)))


def read_by_clip_benchmark(
    folder: Path, workers: int = 0, task: str = "zeroshot_classification"
) -> tuple[Any, list[Any], list[Any]]:
    """The set, its images and its labels or captions, through clip-benchmark's own code."""
    with warnings.catch_warnings(action="ignore"):
        dataset = build_dataset("wds/set", root=str(folder), transform=np.asarray, split="test", task=task)
    loader = DataLoader(
        dataset.batched(7, collation_fn=lambda samples: list(zip(*samples, strict=True))),
        batch_size=None,
        num_workers=workers,
        collate_fn=list,
    )
    images: list[Any] = []
    targets: list[Any] = []
    for some_images, some_targets in loader:
        images += some_images
        targets += some_targets
    return dataset, images, targets


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 4])
def test_clip_benchmark_reads_the_classification_set(cache: Path, workers: int) -> None:
    dataset, images, labels = read_by_clip_benchmark(embedded_sets(SMALL_WORLD, cache)["shapes"], workers)
    assert dataset.classes == [
        "red circle",
        "green circle",
        "red square",
        "green square",
        "red triangle",
        "green triangle",
    ]
    assert len(dataset.templates) >= 3
    assert all("{c}" in template for template in dataset.templates)
    true = evaluation_attributes(SMALL_WORLD)
    assert sorted(labels) == sorted((true[:, 0] * 2 + true[:, 1]).tolist())
    if workers == 0:
        assert np.array_equal(np.stack(images), draw(SMALL_WORLD, "test", true))
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 1


def test_clip_benchmark_reads_the_retrieval_set_and_each_caption_fits_one_picture(cache: Path) -> None:
    _, images, captions = read_by_clip_benchmark(
        embedded_sets(SMALL_WORLD, cache)["shapes_retrieval"], task="zeroshot_retrieval"
    )
    combinations = all_combinations(SMALL_WORLD)
    assert len(images) == len(combinations) == 3 * 2 * 2 * 2 == len({tuple(row) for row in combinations.tolist()})
    assert np.array_equal(np.stack(images), draw(SMALL_WORLD, "retrieval", combinations))
    for row, texts in zip(combinations.tolist(), captions, strict=True):
        assert len(texts) == 5
        assert {claims_of_shapes(text) for text in texts} == {tuple(row)}
    assert len({text for texts in captions for text in texts}) > 2 * len(images), "wordings vary"


def test_clip_benchmark_reads_the_digits(cache: Path) -> None:
    dataset, images, labels = read_by_clip_benchmark(embedded_sets(DIGITS, cache)["digits"])
    assert np.bincount(labels).tolist() == [100] * 10
    assert dataset.classes[:3] == ["zero", "one", "two"]
    assert images[0].shape == (32, 32, 3)
    training = open_dataset(DIGITS, cache)
    assert len(training) == DIGITS.size() == 797
    tested = {image.tobytes() for image in images}
    assert not any(np.asarray(training.image(i)).tobytes() in tested for i in range(len(training)))


def test_names_are_known_without_generating(tmp_path: Path) -> None:
    own = WebdatasetData(shards="x")
    for data in (ShapesData(), DigitsData(), own):
        assert tuple(embedded_sets(data, tmp_path)) == data.evaluation_sets
    materialise(own, tmp_path)
    assert embedded_sets(own, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_what_changes_the_content_changes_the_place(tmp_path: Path) -> None:
    worlds: list[Data] = [SMALL_WORLD, SMALL_WORLD.model_validate({**SMALL_WORLD.model_dump(), "skew": 0.5}), DIGITS]
    assert len({home(data, tmp_path) for data in worlds if isinstance(data, ShapesData | DigitsData)}) == 3


def start(cache: Path) -> subprocess.Popen[bytes]:
    code = (
        "from pathlib import Path; from harness.data import materialise; from harness.config.data import ShapesData;"
        f"materialise(ShapesData(**{SMALL_WORLD.model_dump(exclude_unset=True)!r}), Path({str(cache)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_several_processes_at_once_leave_one_whole_set(cache: Path, tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert contents(home(SMALL_WORLD, tmp_path)) == contents(home(SMALL_WORLD, cache))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_killed_generation_leaves_nothing_that_looks_whole(cache: Path, tmp_path: Path) -> None:
    folder = home(SMALL_WORLD, tmp_path)
    process = start(tmp_path)
    while not (asides := list(tmp_path.glob(f".{folder.name}.*"))) and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert asides, "it was killed while it generated"
    if not folder.exists():
        left = asides[0]
        assert left.exists()
        os.utime(left, (0, 0))
    materialise(SMALL_WORLD, tmp_path)
    assert contents(folder) == contents(home(SMALL_WORLD, cache))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match=r"cannot be generated.*; free space or correct the permissions"):
        materialise(SMALL_WORLD, blocked)


def test_a_full_disk_leaves_no_set_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.data.synthetic.generate.save_truth", full)
    with pytest.raises(StoreError, match="No space left on device"):
        materialise(SMALL_WORLD, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_truth_is_kept_as_plain_arrays(cache: Path) -> None:
    with np.load(home(SMALL_WORLD, cache) / "truth.npz", allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
    assert json.loads(json.dumps(list(shapes.values()))) == [[96, 4], [96, 1, 4], [96, 5, 4], [96, 5, 4]]
