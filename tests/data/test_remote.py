"""Data at URLs and images inside Parquet files."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from harness.base.errors import DataError
from harness.config.data import TableData, WebdatasetData
from harness.data.dataset.dataset import open_dataset
from harness.data.quality.manifest import manifest
from harness.data.sources import remote
from harness.data.sources.inspection import inspect_data
from tests.data.made import encoded, picture, two_shards


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_shards_on_a_web_server_are_copied_once_and_then_read_without_it(tmp_path: Path, server: str) -> None:
    local = two_shards(tmp_path / "served")
    data = WebdatasetData(shards=f"{server}/{{00000..00001}}.tar")
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=r"not on this machine.*harness data fetch"):
        inspect_data(data, cache)
    said: list[str] = []
    remote.fetch(data.shards, cache, said.append)
    assert [line.split()[1] for line in said[1:]] == ["00000.tar", "00001.tar"]
    here = inspect_data(WebdatasetData(shards=str(local)), cache)
    (local / "00001.tar").unlink()
    assert inspect_data(data, cache) == here


@pytest.mark.filterwarnings("ignore")
def test_a_fetch_goes_on_where_it_stopped_and_says_what_is_wrong(tmp_path: Path, server: str) -> None:
    two_shards(tmp_path / "served")
    cache = tmp_path / "cache"
    pattern = f"{server}/{{00000..00001}}.tar"
    first, second = remote.fetch(pattern, cache, lambda _: None)
    second.unlink()
    with pytest.raises(DataError, match=r"1 of 2 files are not on this machine, 00001.tar"):
        remote.mirrored(pattern, cache)
    stamp = first.stat().st_mtime_ns
    said: list[str] = []
    remote.fetch(pattern, cache, said.append)
    assert len(said) == 2
    assert first.stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="cannot be read"):
        remote.fetch(f"{server}/{{00000..00002}}.tar", cache, lambda _: None)
    with pytest.raises(DataError, match=r"nothing://.*cannot be read"):
        remote.fetch("nothing://x/a.tar", cache, lambda _: None)


def test_globs_of_any_fsspec_system(tmp_path: Path) -> None:
    local = two_shards(tmp_path / "local")
    pattern = f"file://{local}/0000*.tar"
    files = remote.fetch(pattern, tmp_path / "cache", lambda _: None)
    assert [file.name for file in files] == ["00000.tar", "00001.tar"]
    assert [file.read_bytes() for file in files] == [(local / file.name).read_bytes() for file in files]
    with pytest.raises(DataError, match="matches no file"):
        remote.fetch(f"file://{local}/x*.tar", tmp_path / "cache", lambda _: None)


def test_hugging_face_parquet_with_embedded_images(tmp_path: Path) -> None:
    contents = [encoded(picture(number), ("JPEG", "PNG", "WEBP")[number % 3]) for number in range(9)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(2):
        rows = range(number * 5, min(number * 5 + 5, 9))
        images = pa.array([{"bytes": contents[i], "path": f"{i}.img" if number else None} for i in rows], kind)
        columns = {"image": images, "caption": [f"raw {i}" for i in rows], "blip": [[f"b {i}", "c"] for i in rows]}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / f"train-{number:05d}-of-00002.parquet")
    data = TableData(path=str(tmp_path), pseudo={"blip": ("blip",)})
    dataset = open_dataset(data, tmp_path / "cache")
    stem = "train-00000-of-00002"
    assert dataset.keys == [
        *(f"{stem}-{row:08d}" for row in range(5)),
        *(f"train-00001-of-00002-{row:08d}" for row in range(4)),
    ]
    for i in range(9):
        assert dataset.raw(i) == f"raw {i}"
        assert dataset.pseudo("blip", i) == (f"b {i}", "c")
        with_pillow = np.asarray(picture(i), dtype=int)
        assert np.abs(np.asarray(dataset.image(i), dtype=int) - with_pillow).mean() < 8
    files = manifest(data, tmp_path / "cache")["files"]
    assert [file["samples"] for file in files] == [5, 4]


def test_a_column_of_image_files_and_one_of_keys(tmp_path: Path) -> None:
    cells = [encoded(picture(0)), b"", encoded(picture(2)), None]
    table = pa.table({"jpg": cells, "txt": ["a", "b", "c", "d"], "id": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    data = TableData(path=str(tmp_path / "a.parquet"), image="jpg", raw="txt", key="id", least_share=0.5)
    dataset = open_dataset(data, tmp_path / "cache")
    assert dataset.keys == ["1", "3"]
    assert dataset.report.rejected == {"image is empty": 1, "no image path": 1}
    assert dataset.image(1).size == (40, 30)
