from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.base.errors import DataError
from harness.config.data import TableData
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.sources.inspection import inspect_data
from tests.data.made import encoded, picture

ROWS: list[dict[str, Any]] = [
    {"image": "images/a.jpg", "caption": 'a "quoted", caption', "blip": ["one", "two"], "short": "s1", "long": "l1"},
    {"image": "images/b.png", "caption": "zwei\nZeilen, Ä", "blip": ["three"], "short": "[not a list", "long": ""},
    {"image": "images/c.jpg", "caption": "123", "blip": ["x", " ", "y"], "short": "s3", "long": "l3"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "set" / "images"
    images.mkdir(parents=True)
    for number, row in enumerate(ROWS):
        name = Path(row["image"])
        (images / name.name).write_bytes(encoded(picture(number), "PNG" if name.suffix == ".png" else "JPEG"))
    return tmp_path / "set"


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
            )
    return path


def opened(path: Path, **fields: Any) -> Dataset:
    return open_dataset(TableData.model_validate({"path": str(path), **fields}), path.parent.parent / "cache")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_all_kinds_of_table_give_the_same_samples(folder: Path, suffix: str) -> None:
    dataset = opened(write(folder, suffix, ROWS), pseudo={"blip": "blip", "both": ["short", "long"]})
    assert dataset.keys == [row["image"] for row in ROWS]
    assert [dataset.raw(i) for i in range(3)] == [row["caption"] for row in ROWS]
    assert [dataset.pseudo("blip", i) for i in range(3)] == [("one", "two"), ("three",), ("x", "y")]
    assert [dataset.pseudo("both", i) for i in range(3)] == [("s1", "l1"), ("[not a list",), ("s3", "l3")]
    assert dataset.caption_counts("both").tolist() == [2, 1, 2]
    assert dataset.image(1).size == (40, 30)
    assert dataset.report.rejected == {}


def test_the_kind_of_table_is_not_part_of_what_it_holds(folder: Path) -> None:
    reports = [opened(write(folder, suffix, ROWS), pseudo={"blip": "blip"}).report for suffix in (".csv", ".parquet")]
    assert reports[0].fingerprint == reports[1].fingerprint


def test_bad_rows_are_left_out_and_come_back_when_their_image_is_repaired(folder: Path) -> None:
    rows = [
        *ROWS,
        {**ROWS[0], "image": "images/gone.jpg"},
        {**ROWS[0], "image": ""},
        {**ROWS[0], "image": "images/bad.jpg"},
        {**ROWS[0], "image": "images"},
        {**ROWS[0], "image": "images/c.jpg"},
        {**ROWS[0], "image": "images/d.jpg", "caption": "  "},
        {**ROWS[0], "image": "images/e.jpg", "blip": []},
    ]
    for name in "de":
        (folder / "images" / f"{name}.jpg").write_bytes(encoded(picture(9)))
    (folder / "images" / "bad.jpg").write_bytes(b"no image")
    data = TableData(path=str(write(folder, ".csv", rows)), pseudo={"blip": ("blip",)}, least_share=0)
    cache = folder.parent / "cache"
    assert inspect_data(data, cache).rejected == {
        "duplicate key": 1,
        "image missing": 1,
        "image unreadable": 2,
        "no caption from blip": 1,
        "no image path": 1,
        "no raw caption": 1,
    }
    for name in ("gone", "bad"):
        (folder / "images" / f"{name}.jpg").write_bytes(encoded(picture(10)))
    repaired = inspect_data(data, cache)
    assert repaired.samples == 5
    assert "image missing" not in repaired.rejected


def test_images_may_lie_elsewhere(folder: Path) -> None:
    os.rename(folder / "images", folder.parent / "pictures")
    path = write(folder, ".csv", [{**row, "image": Path(row["image"]).name} for row in ROWS])
    assert len(opened(path, image_root=str(folder.parent / "pictures"))) == 3
    with pytest.raises(DataError, match=r"no usable sample.*3 image missing"):
        opened(path)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"image": "file"}, "has no column 'file'.*image, caption, blip, short, long"),
        ({"raw": "text"}, "has no column 'text'"),
        ({"pseudo": {"a": ["blip", "none"]}}, "has no column 'none'"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_unknown_column_is_named_with_those_there_are(
    folder: Path, suffix: str, fields: dict[str, Any], what: str
) -> None:
    path = write(folder, suffix, ROWS)
    with pytest.raises(DataError, match=what) as caught:
        opened(path, **fields)
    assert str(path) in str(caught.value)


def test_tables_that_cannot_be_read_are_refused_in_one_sentence(folder: Path) -> None:
    broken = {
        "ragged.csv": b"image,caption\na.jpg,b,c,d\n",
        "latin.csv": "image,caption\na.jpg,\xc4\n".encode("latin-1"),
        "empty.csv": b"",
        "text.parquet": b"no parquet at all",
        "table.xlsx": b"PK",
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            opened(folder / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"none.csv: table is missing"):
        opened(folder / "none.csv")
