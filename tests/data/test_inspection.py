from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import DataError
from harness.config.data import DigitsData, ShapesData, WebdatasetData
from harness.data import inspect_data
from harness.data.dataset.dataset import open_dataset
from harness.runs.record import DataReport
from tests.damages import DAMAGES
from tests.data.made import encoded, picture, sample, two_shards, write_tar


def inspected(shards: Path, cache: Path) -> DataReport:
    return inspect_data(WebdatasetData(shards=str(shards)), cache)


def test_a_moved_or_repacked_set_keeps_its_fingerprint(tmp_path: Path) -> None:
    before = inspected(two_shards(tmp_path / "a"), tmp_path / "cache")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert inspected(tmp_path / "b", tmp_path / "cache") == before
    assert inspected(tmp_path / "b", tmp_path / "other cache") == before
    formats = ("JPEG", "PNG", "WEBP")
    everything = [
        (f"{s:05d}{n:04d}", sample(10 * s + n, form=formats[n % 3]))
        for s in range(2)
        for n in range(6)
        if (s, n) != (0, 3)
    ]
    assert inspected(write_tar(tmp_path / "one.tar", everything), tmp_path / "cache") == before


@pytest.mark.parametrize("name", ["index.arrow", "rows.npy", "digests.npy", "sha256.json", "report.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_index_is_built_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    data = WebdatasetData(shards=str(two_shards(tmp_path / "a")))
    whole = open_dataset(data, tmp_path / "cache")
    before = [(whole.raw(i), whole.content(i)) for i in range(len(whole))]
    (file,) = (tmp_path / "cache").glob(f"index-*/{name}")
    DAMAGES[how](file)
    found = open_dataset(data, tmp_path / "cache")
    assert [(found.raw(i), found.content(i)) for i in range(len(found))] == before
    assert found.report == whole.report
    is_unseen = how == "gone" and name in ("sha256.json", "report.json")  # as of an earlier version, or not finished
    assert ("is damaged: the data is read again" in capsys.readouterr().err) != is_unseen


def test_a_report_of_an_index_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed digit, and another index's report, are noticed before anything is planned with them."""
    shards = str(two_shards(tmp_path / "a"))
    data = WebdatasetData(shards=shards)
    before = inspect_data(data, tmp_path / "cache")
    (report,) = (tmp_path / "cache").glob("index-*/report.json")
    stored = json.loads(report.read_text())
    stored["report"]["fingerprint"] = "0" * 64
    report.write_text(json.dumps(stored))
    assert inspect_data(data, tmp_path / "cache") == before
    inspect_data(WebdatasetData(shards=shards, raw="json:caption"), tmp_path / "other")
    (other,) = (tmp_path / "other").glob("index-*/report.json")
    shutil.copyfile(other, report)
    assert inspect_data(data, tmp_path / "cache") == before
    assert capsys.readouterr().err.count("is damaged: the data is read again") == 2
    del stored["digest"]  # as an earlier version wrote it
    stored["report"]["fingerprint"] = before.fingerprint
    report.write_text(json.dumps(stored))
    assert inspect_data(data, tmp_path / "cache") == before
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["train/00000.tar", "eval/shapes/test/0.tar", "eval/shapes/classnames.txt", "truth.npz"]
)
@pytest.mark.parametrize("how", ["flipped", "a folder", "gone"])
def test_a_damaged_world_is_generated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    data = ShapesData(train_samples=8, test_samples=4)
    whole = open_dataset(data, tmp_path)
    before = [(whole.raw(i), whole.content(i)) for i in range(len(whole))]
    (world,) = tmp_path.glob("shapes-*")
    contents = {file: file.read_bytes() for file in world.rglob("*") if file.is_file()}
    DAMAGES[how](world / name)
    found = open_dataset(data, tmp_path)
    assert [(found.raw(i), found.content(i)) for i in range(len(found))] == before
    assert {file: file.read_bytes() for file in world.rglob("*") if file.is_file()} == contents
    assert capsys.readouterr().err.count(f"{world} is damaged: it is generated again") == 1
    assert not list(tmp_path.glob(".shapes-*"))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["raw", "pseudo", "image", "key", "order", "left out"]), st.integers(0, 3))
def test_any_change_of_content_changes_the_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, change: str, where: int
) -> None:
    folder = tmp_path_factory.mktemp("set")
    samples = [(f"{number}", sample(number)) for number in range(4)]
    before = inspected(write_tar(folder / "a.tar", samples), folder / "cache").fingerprint
    key, members = samples[where]
    match change:
        case "raw":
            samples[where] = key, members | {"txt": members["txt"] + b"."}
        case "pseudo":
            samples[where] = key, members | {"json": json.dumps({"captions": ["first", "other"]}).encode()}
        case "image":
            samples[where] = key, members | {"jpg": encoded(picture(where + 100))}
        case "key":
            samples[where] = "x", members
        case "order":
            samples = samples[1:] + samples[:1]
        case _:
            samples.pop(where)
    assert inspected(write_tar(folder / "b.tar", samples), folder / "cache").fingerprint != before


def test_metadata_that_is_not_used_does_not_enter_the_fingerprint(tmp_path: Path) -> None:
    reports = [
        inspected(write_tar(tmp_path / f"{name}.tar", [("k", sample(1, sha256=name))]), tmp_path / "cache")
        for name in "ab"
    ]
    assert reports[0] == reports[1]


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("k", sample(1))])
    before = inspected(shard, tmp_path / "cache")
    stamp = shard.stat()
    # Same name, size and time: nothing is read, so not even garbage is noticed.
    shard.write_bytes(bytes(stamp.st_size))
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert inspected(shard, tmp_path / "cache") == before
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    with pytest.raises(DataError, match="no usable sample"):
        inspected(shard, tmp_path / "cache")


def test_an_index_that_was_cut_short_is_built_again(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("k", sample(1))])
    before = inspected(shard, tmp_path / "cache")
    (report,) = (tmp_path / "cache").glob("index-*/report.json")
    report.unlink()
    (report.parent / "index.arrow").write_bytes(b"")
    assert inspected(shard, tmp_path / "cache") == before


def test_embedded_sets_are_identified_without_being_generated(tmp_path: Path) -> None:
    reports = [inspect_data(data, tmp_path / "cache") for data in (ShapesData(), ShapesData(seed=1), DigitsData())]
    assert len({report.fingerprint for report in reports}) == 3
    assert [report.samples for report in reports] == [8192, 8192, 1297]
    assert not (tmp_path / "cache").exists()


def test_a_known_set_is_inspected_without_numpy_or_torch(tmp_path: Path) -> None:
    two_shards(tmp_path / "a")
    inspected(tmp_path / "a", tmp_path / "cache")
    code = (
        "import sys; from pathlib import Path; from harness.data import inspect_data, embedded_sets;"
        "from harness.config.data import WebdatasetData;"
        f"inspect_data(WebdatasetData(shards={str(tmp_path / 'a')!r}), Path({str(tmp_path / 'cache')!r}));"
        "print([name for name in ('numpy', 'torch', 'pyarrow', 'PIL', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
