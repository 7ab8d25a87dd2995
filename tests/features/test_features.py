"""Teacher features on disk: equal to encoding directly, however often the work was killed, in however many shards."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from harness.base.errors import ModelError, StoreError
from harness.config.captions import Captions
from harness.config.data import ShapesData, WebdatasetData
from harness.config.model import Model
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.synthetic.embedded import train_shards
from harness.features import compute, read_features, teacher_features
from harness.features import resumable_array as growing
from harness.features.compute import Extraction, Wanted
from harness.features.dedup import distinct, numbered
from harness.models import Towers, build_towers
from harness.models.crop import resized_first
from tests.damages import DAMAGES as AS_A_FILE
from tests.evaluation.worlds import picture, write_shard
from tests.killing import kill_9, script
from tests.node.small import CONFIG

DATA = ShapesData(train_samples=96, test_samples=36)
CPU = torch.device("cpu")
SOURCES = ("raw", "captioner")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(DATA, tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PART", 32)
    monkeypatch.setattr(compute, "BATCH", 8)


def extraction(folder: Path, dataset: Dataset, threads: int = 1) -> Extraction:
    return Extraction(Wanted(folder, dataset, SOURCES), build_towers(Model(name="small", config=CONFIG)), CPU, threads)


def arrays(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if not path.name.endswith("lock")}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=60))
def test_equal_texts_are_numbered_in_order_of_appearance(values: list[int]) -> None:
    hashes = np.array([[value % 3, value] for value in values], dtype=np.uint64).reshape(-1, 2)
    rows, first = numbered(hashes)
    seen: dict[int, int] = {}
    assert rows.tolist() == [seen.setdefault(value, len(seen)) for value in values]
    assert first.tolist() == [values.index(value) for value in seen]


def test_features_are_those_of_each_image_and_caption_alone(tmp_path: Path, dataset: Dataset) -> None:
    towers = build_towers(Model(name="small", config=CONFIG)).eval()
    captions = Captions(source=("captioner", "captioner_b"), count=4)
    found = teacher_features(tmp_path, dataset, captions, lambda: towers, CPU)
    samples = np.array([5, 90, 17])
    source, position = np.array([1, -1, 0]), np.array([1, 0, 1])
    texts = [dataset.pseudo("captioner_b", 5)[1], dataset.raw(90), dataset.pseudo("captioner", 17)[1]]
    with torch.no_grad():
        pixels = torch.stack([towers.preprocess(dataset.image(i)) for i in samples.tolist()])
        assert torch.allclose(found.image(samples), towers.encode_image(pixels), atol=1e-3)
        expected = towers.encode_text(towers.tokenize(texts))
    assert torch.allclose(found.text(samples, source, position), expected, atol=1e-3)
    again = teacher_features(tmp_path, dataset, captions, _unwanted, CPU)
    assert torch.equal(again.image(samples), found.image(samples))


@pytest.mark.parametrize("size", [(48, 48), (61, 40), (40, 61), (33, 90)])
@pytest.mark.parametrize("resize", [32, 37, 40, 64])
def test_a_teachers_images_are_resized_and_then_cropped_as_torchvision_does(size: tuple[int, int], resize: int) -> None:
    towers = build_towers(Model(name="small", config=CONFIG))
    assert towers.image_size == 32
    image = Image.fromarray(np.random.default_rng(sum(size)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    steps = [Resize(resize, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(), Normalize(towers.mean, towers.std)]
    own = towers.preprocess(image)
    towers.resize_first(resize)
    assert torch.equal(towers.preprocess(image), Compose(steps)(image))
    assert torch.equal(own, towers.preprocess(image)) == (resize == 32)


def test_a_teacher_that_squashes_or_pads_does_so_before_its_crop() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    statistics: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    after = [ToTensor(), Normalize(**statistics)]
    squashed = resized_first({"size": 32, "resize_mode": "squash", **statistics}, 40)(image)
    expected = Compose([Resize((40, 40), InterpolationMode.BICUBIC), CenterCrop(32), *after])(image)
    assert torch.equal(squashed, expected)
    padded = resized_first({"size": 32, "resize_mode": "longest", "fill_color": 255, **statistics}, 42)(image)
    expected = Compose([Resize((28, 42), InterpolationMode.BICUBIC), CenterCrop((28, 32)), *after])(image)
    assert torch.equal(padded[:, 2:30], expected)
    assert (padded[:, :2] == 1).all()
    assert (padded[:, 30:] == 1).all()


def test_a_crop_larger_than_the_image_is_refused() -> None:
    towers = build_towers(Model(name="small", config=CONFIG))
    with pytest.raises(
        ModelError, match=r"teacher.resize: images are resized to 31 px, but .* has 32; give at least 32"
    ):
        towers.resize_first(31)


def _unwanted() -> Towers:
    raise AssertionError("nothing is missing")


def test_distinct_texts_are_found_again(dataset: Dataset) -> None:
    for lower in (False, True):
        found = distinct(dataset, "captioner", lower)
        texts = found.texts(dataset, "captioner", lower, range(len(found)))
        assert len(set(texts)) == len(texts)
        every = [text.lower() if lower else text for i in range(96) for text in dataset.pseudo("captioner", i)]
        assert [texts[row] for row in found.rows] == every


def test_a_source_that_took_over_the_name_of_another_has_features_of_its_own(tmp_path: Path, dataset: Dataset) -> None:
    shards = train_shards(DATA, tmp_path / "data")
    towers = build_towers(Model(name="small", config=CONFIG)).eval()
    named = [("captioner", "captioner_b"), ("captioner_b", "captioner")]
    datasets = []
    for first, second in named:
        pseudo = {"a": f"json:{first}", "b": f"json:{second}"}
        open_dataset(DATA, tmp_path / "data")
        data = WebdatasetData.model_validate({**dict(shards), "pseudo": pseudo})
        datasets.append(open_dataset(data, tmp_path / "data"))
    samples = np.array([5, 90, 17])
    rows = (samples, np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))

    def features(folder: Path, number: int, source: str) -> torch.Tensor:
        captions = Captions(source=source, count=1)
        return teacher_features(folder, datasets[number], captions, lambda: towers, CPU).text(*rows)

    shared = [features(tmp_path / "shared", number, "a") for number in (0, 1)]
    alone = [features(tmp_path / f"alone{number}", number, "a") for number in (0, 1)]
    assert torch.equal(shared[0], alone[0])
    assert torch.equal(shared[1], alone[1])
    assert not torch.equal(shared[0], shared[1])
    assert torch.equal(features(tmp_path / "shared", 1, "b"), shared[0])  # the same captions under another name
    digests = [dataset.captions_digest(name) for dataset in datasets for name in "ab"]
    assert digests[:2] == digests[:1:-1]
    assert len({*digests, dataset.captions_digest(None)}) == 3


def test_a_digest_of_captions_tells_where_they_end(tmp_path: Path) -> None:
    found = set()
    for number, captions in enumerate([["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""]]):
        members = [("0.png", picture(0)), ("0.txt", b"raw"), ("0.json", json.dumps({"x": captions}).encode())]
        write_shard(tmp_path / f"{number}" / "0.tar", members)
        data = WebdatasetData(shards=str(tmp_path / f"{number}" / "0.tar"), pseudo={"x": "json:x"})
        dataset = open_dataset(data, tmp_path / "data")
        found.add((dataset.captions_digest("x"), dataset.pseudo("x", 0)))
    assert len({digest for digest, _ in found}) == len({texts for _, texts in found}) >= 3


@pytest.mark.usefixtures("small_parts")
def test_shards_threads_and_rot_end_in_the_same_files(tmp_path: Path, dataset: Dataset) -> None:
    assert extraction(tmp_path / "whole" / "f", dataset).compute()
    whole = arrays(tmp_path / "whole" / "f")
    assert len(whole) == 2 * 3 + 2
    for number in (2, 0):
        assert not extraction(tmp_path / "shards" / "f", dataset, threads=3).compute((number, 3))
    partial = tmp_path / "shards" / "f" / "image.npy.partial"
    content = bytearray(partial.read_bytes())
    content[-1] ^= 1  # of the part that shard 2 has made
    partial.write_bytes(content)
    assert not extraction(tmp_path / "shards" / "f", dataset).compute((1, 3))
    assert extraction(tmp_path / "shards" / "f", dataset).compute((2, 3))
    assert arrays(tmp_path / "shards" / "f") == whole


@pytest.mark.usefixtures("small_parts")
def test_damage_is_found(tmp_path: Path, dataset: Dataset) -> None:
    made = extraction(tmp_path, dataset)
    before = made.estimate()
    assert (before.images, before.width) == (96, 16)
    made.compute()
    assert made.estimate().bytes == 0
    wanted = Wanted(tmp_path, dataset, SOURCES)
    files = [wanted.images, *map(wanted.file, SOURCES)]
    assert sum(file.stat().st_size - 128 for file in files) == before.bytes
    assert growing.damage(tmp_path / "image.npy", 96) == []
    content = bytearray((tmp_path / "image.npy").read_bytes())
    content[128 + 16 * 2 * 20] ^= 1
    (tmp_path / "image.npy").write_bytes(content)
    assert growing.damage(tmp_path / "image.npy", 96) == [0]
    (tmp_path / "image.npy").write_bytes(content[:-2])
    assert growing.damage(tmp_path / "image.npy", 96) is None
    with pytest.raises(StoreError, match=r"image.npy: cannot be read .*delete it"):
        read_features(Wanted(tmp_path, dataset, SOURCES), {})


def _changed(change: Callable[[Any], Any]) -> Callable[[Path, Path], None]:
    return lambda file, _: np.save(file, change(np.load(file)))


def _with_digests(file: Path, other: Path) -> None:
    """Another source's features and their digests in place of these."""
    shutil.copyfile(other, file)
    shutil.copyfile(other.with_suffix(".json"), file.with_suffix(".json"))


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "NaN": _changed(lambda array: array * np.float16("nan")),
    "signs": _changed(lambda array: -array),
    "one sign": _changed(lambda array: np.where(np.arange(array.size).reshape(array.shape) == 5, -array, array)),
    "order": _changed(lambda array: array[::-1]),
    "rows": _changed(lambda array: array[:-1]),
    "width": _changed(lambda array: array[:, :-1]),
    "type": _changed(lambda array: array.astype(np.float32)),
    "cut": lambda file, _: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file, _: file.write_bytes(b""),
    "no digests": lambda file, _: file.with_suffix(".json").unlink(),
    "damaged digests": lambda file, _: file.with_suffix(".json").write_text('{"rows": 96}'),
    "another array": lambda file, other: shutil.copyfile(other, file),
    "another array with its digests": _with_digests,
    "a pipe": lambda file, _: AS_A_FILE["a pipe"](file),
    "a folder": lambda file, _: AS_A_FILE["a folder"](file),
    "a folder for digests": lambda file, _: AS_A_FILE["a folder"](file.with_suffix(".json")),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("place", ["image", "captions"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_features_are_computed_again(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    captions = Captions(source=("captioner", "captioner_b"), count=2)
    towers = build_towers(Model(name="small", config=CONFIG)).eval()
    teacher_features(tmp_path, dataset, captions, lambda: towers, CPU)
    whole, wanted = arrays(tmp_path), Wanted(tmp_path, dataset, ("raw", "captioner", "captioner_b"))
    files = {"image": wanted.images, "captions": wanted.file("captioner")}
    DAMAGES[name](files[place], wanted.file("captioner_b"))
    capsys.readouterr()
    teacher_features(tmp_path, dataset, captions, lambda: towers, CPU)
    assert arrays(tmp_path) == whole
    assert f"{files[place]} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("how", [name for name in AS_A_FILE if name != "gone"])
@pytest.mark.usefixtures("small_parts")
def test_an_unfinished_array_that_is_damaged_is_begun_again(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    extraction(tmp_path / "whole/features", dataset).compute()
    extraction(tmp_path / "half/features", dataset).compute((0, 2))
    AS_A_FILE[how](tmp_path / "half/features/image.npy.partial")
    while not extraction(tmp_path / "half/features", dataset).compute():
        pass
    assert arrays(tmp_path / "half/features") == arrays(tmp_path / "whole/features")
    assert ("image.npy.partial is damaged" in capsys.readouterr().err) == (how not in ("flipped",))


@pytest.mark.parametrize("how", ["swapped", "edited", "of an earlier version", *AS_A_FILE])
def test_where_captions_are_is_found_again(
    tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    wanted = Wanted(tmp_path, dataset, ("raw", "captioner"))
    tmp_path.mkdir(exist_ok=True)
    whole, other = wanted.distinct("captioner"), wanted.distinct("raw")
    file = tmp_path / f"{wanted.stem('captioner')}.rows.npz"
    match how:
        case "swapped":
            shutil.copyfile(tmp_path / f"{wanted.stem('raw')}.rows.npz", file)
        case "edited":
            content = dict(np.load(file))
            np.savez(file, **content | {"rows": content["rows"][::-1]})
        case "of an earlier version":
            np.savez(file, rows=other.rows, starts=other.starts)
        case _:
            AS_A_FILE[how](file)
    found = wanted.distinct("captioner")
    assert (f"{file} is damaged" in capsys.readouterr().err) == (how != "gone")
    assert all(np.array_equal(getattr(found, name), getattr(whole, name)) for name in ("rows", "starts", "first"))


def test_a_teacher_without_finite_features_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    towers = build_towers(Model(name="small", config=CONFIG)).eval()
    with torch.no_grad():
        next(towers.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match=r"features of rows 0 to .* are not finite; check the teacher's weights"):
        teacher_features(tmp_path, dataset, Captions(), lambda: towers, CPU)


SCRIPT = """
import sys
from pathlib import Path
from harness.features import compute, resumable_array as growing
growing.PART, compute.BATCH = 4, 4
from harness.data.dataset.dataset import open_dataset
from tests.features.test_features import DATA, extraction
print("ready", flush=True)
extraction(Path(sys.argv[2]), open_dataset(DATA, Path(sys.argv[1]))).compute(said=lambda text: print(text, flush=True))
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    def start(folder: str) -> subprocess.Popen[str]:
        return script(SCRIPT, str(tmp_path / "data"), str(tmp_path / folder / "features"))

    assert start("whole").wait(600) == 0
    assert kill_9(lambda: start("killed"), times=5, lines=12, pause_s=0.02) >= 2
    assert start("killed").wait(600) == 0
    assert arrays(tmp_path / "killed/features") == arrays(tmp_path / "whole/features")
