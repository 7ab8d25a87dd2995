"""An index is the same, byte for byte, however it is made: by one process or several, with Pillow or without."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.base.errors import DataError
from harness.config.data import Data, Pictures, TableData, WebdatasetData
from harness.data.dataset import index, index_parts, pictures
from harness.data.dataset.index import DIGESTS, INDEX, ROWS
from harness.data.sources.inspection import inspect_data
from tests.data.made import encoded, picture, sample, write_tar
from tests.fuzz import formats

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "jpeg with dpi": ("JPEG", {"dpi": (72, 72), "quality": 30}),
}


def made(data: Data, cache: Path) -> Any:
    """The bytes of an index and what it says, or the error."""
    try:
        report = inspect_data(data, cache)
    except DataError as error:
        return str(error)
    (folder,) = cache.glob("index-*")
    assert not list(folder.glob(".parts*"))
    return report, {name: (folder / name).read_bytes() for name in (INDEX, ROWS, DIGESTS)}


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_parts, "WORTH_BYTES", 0)
    monkeypatch.setattr(index_parts, "cores", lambda: 2)
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def both(data: Data, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The index by several processes, which must be that of one process that opens every picture with Pillow."""
    used: list[object] = []
    build = index_parts.build

    def noted(*arguments: Any) -> Any:
        used.append(build(*arguments))
        return used[-1]

    monkeypatch.setattr(index_parts, "build", noted)
    found = made(data, folder / "several")
    with monkeypatch.context() as plain:
        plain.setattr(index_parts, "build", lambda *_: None)
        plain.setattr(pictures, "_plain", lambda _: None)
        assert made(data, folder / "one") == found
    monkeypatch.setattr(index_parts, "build", build)
    return found, bool(used and used[-1])


def test_the_fuzzers_tables_and_shards(tmp_path: Path, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = 0
    for number in range(40):
        draw = random.Random(f"parts/{number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        kind = draw.choice(("parquet", "tar", "damaged"))
        data = formats.FORMATS[kind](draw, folder).data
        parts += both(data, folder, monkeypatch)[1]
    assert parts > 8  # some sets have one file, or are refused


def test_what_is_counted_adds_up_over_files(tmp_path: Path, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(index_parts, "ROWS_PER_BATCH", 4)
    for number, count in enumerate((3, 9, 4, 0, 8)):
        rows: list[dict[str, Any]] = [
            {"image": encoded(picture(n), "PNG"), "caption": f"['{number} {n}']", "b": "x"} for n in range(count)
        ]
        rows += [{"image": b"broken", "caption": "c", "b": "x"}, {"image": b"", "caption": "nan", "b": None}]
        kind = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("b", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, kind), tmp_path / f"{number}.parquet")
    data = TableData(path=str(tmp_path), least_share=0, pseudo={"b": "b"})
    (report, _), is_parts = both(data, tmp_path, monkeypatch)
    assert is_parts
    assert (report.samples, report.rejected) == (24, {"image unreadable": 5, "no raw caption": 5})
    assert report.notes == ("24 raw captions are lists of captions; the first of each is the raw caption",)


def test_reasons_keep_their_names_over_files(tmp_path: Path, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, other = b"{", b'{"captions": 5}'
    for shard, contents in enumerate(([broken], [other, other, broken, b"{}"])):
        bad = [(f"x{n}", sample(n) | {"json": content}) for n, content in enumerate(contents)]
        write_tar(tmp_path / "s" / f"{shard}.tar", [("good", sample(9)), *bad])
    data = WebdatasetData(shards=str(tmp_path / "s"), pseudo={"p": "json:captions"}, least_share=0)
    (report, _), is_parts = both(data, tmp_path, monkeypatch)
    assert is_parts
    assert report.rejected == {
        "caption is neither text nor a list of texts from p": 2,
        "json unreadable from p": 2,
        "no caption from p": 1,
    }


def test_keys_that_repeat_in_several_tables(tmp_path: Path, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encoded(picture(1), "PNG"))
    for number, names in enumerate((["a.png", "b.png"], ["b.png"])):
        pq.write_table(pa.table({"image": names, "caption": ["x"] * len(names)}), tmp_path / f"{number}.parquet")
    (report, _), is_parts = both(
        TableData(path=str(tmp_path), image_root=str(tmp_path), least_share=0), tmp_path, monkeypatch
    )
    assert (report.rejected, is_parts) == ({"duplicate key": 1}, False)
    merged = TableData(path=str(tmp_path), image_root=str(tmp_path), repeats="samples")
    assert both(merged, tmp_path / "s", monkeypatch)[0][0].samples == 3


def test_a_damaged_shard_is_the_same_error(tmp_path: Path, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        file = write_tar(tmp_path / "s" / f"{shard}.tar", [(f"{n}", sample(n)) for n in range(3)])
        if shard:
            file.write_bytes(file.read_bytes()[:700])
    found, _ = both(WebdatasetData(shards=str(tmp_path / "s"), pseudo={}), tmp_path, monkeypatch)
    assert "1.tar" in found


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_header_says_what_pillow_says(form: str) -> None:
    name, options = FORMS[form]
    dice = random.Random(form)
    hits = 0
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        picture(3, 37, 21).convert(mode).save(buffer, name, **options)
        whole = buffer.getvalue()
        assert pictures._plain(whole[:4096]) == (37, 21)
        for _ in range(1500):
            head = bytearray(whole[: dice.choice((700, 4096))])
            for _ in range(dice.randint(1, 3)):
                head[dice.randrange(min(len(head), 650))] = dice.choice(
                    (0, 1, 17, 0xC0, 0xC4, 0xDA, 0xFF, dice.randrange(256))
                )
            if (found := pictures._plain(bytes(head))) is not None:
                hits += 1
                assert pictures._opened(bytes(head), Pictures()) == (*found, ())
    assert hits > 100


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "LA", "1", "I;16"])
def test_what_is_not_plain_is_left_to_pillow(mode: str) -> None:
    image = Image.new(mode, (8, 8))
    for form in ("PNG", "JPEG"):
        if (form == "JPEG") != (mode == "CMYK"):
            continue
        buffer = io.BytesIO()
        image.save(buffer, form)
        assert pictures._plain(buffer.getvalue()) is None
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(1).save(buffer, "JPEG", exif=exif)
    assert pictures._plain(buffer.getvalue()) is None
