"""Captions in files of their own: every layout that people have, and refusals of what does not belong."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from harness.base.errors import DataError
from harness.config.data import TableData, WebdatasetData
from harness.config.load import load_experiment
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.quality.manifest import manifest
from harness.data.sources.inspection import indexed
from tests.data.made import encoded, picture, sample, two_shards, write_tar

KEYS = [f"{s:05d}{n:04d}" for s in range(2) for n in range(6) if (s, n) != (0, 3)]
NUMBERS = [10 * int(key[:5]) + int(key[5:]) for key in KEYS]


def spec(tmp_path: Path, **source: Any) -> WebdatasetData:
    if not (tmp_path / "shards").exists():
        two_shards(tmp_path / "shards")
    return WebdatasetData.model_validate(
        {"shards": str(tmp_path / "shards"), "pseudo": {"mine": source}, "least_share": 0}
    )


def opened(tmp_path: Path, **source: Any) -> Dataset:
    return open_dataset(spec(tmp_path, **source), tmp_path / "cache")


def found(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {key: dataset.pseudo("mine", i) for i, key in enumerate(dataset.keys)}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def expected(*texts: str) -> dict[str, tuple[str, ...]]:
    return {key: tuple(text.format(number) for text in texts) for key, number in zip(KEYS, NUMBERS, strict=True)}


def test_parquet_by_key_in_any_order_with_rows_of_others(tmp_path: Path) -> None:
    rows = [{"key": key, "captions": [f"a {n}", f"b {n}"]} for key, n in zip(KEYS, NUMBERS, strict=True)]
    rows = [{"key": "stranger", "captions": ["x"]}, *reversed(rows)]
    write_parquet(tmp_path / "captions" / "0.parquet", rows[:4])
    write_parquet(tmp_path / "captions" / "1.parquet", rows[4:])
    dataset = opened(tmp_path, path=str(tmp_path / "captions"))
    assert found(dataset) == expected("a {}", "b {}")
    account = indexed(spec(tmp_path, path=str(tmp_path / "captions")), tmp_path / "cache").joined["mine"]
    assert account["rows"] == 12
    assert account["unused_rows"] == 1
    assert account["covered"] == account["samples"] == 11


def test_dreamlip_csv_by_url_whose_long_captions_are_split(tmp_path: Path) -> None:
    rows = [
        {
            "Image Path": f"http://x/{n}",
            "raw_caption": f"raw  {n}",
            "shortIB_captions": f"short {n}",
            "longSV_captions": f"First of {n}. Then 2.5 cars! Last?",
        }
        for n in NUMBERS
    ]
    dataset = opened(
        tmp_path,
        path=str(write_csv(tmp_path / "dreamlip.csv", rows)),
        id="Image Path",
        join="json:url",
        raw="raw_caption",
        captions=["shortIB_captions", "longSV_captions"],
        split="sentences",
    )
    assert found(dataset) == expected("short {}", "First of {}.", "Then 2.5 cars!", "Last?")


def test_laclip_lines_aligned_with_the_rows_of_a_table(tmp_path: Path) -> None:
    """The table has the failed download too; line and row number mean nothing to the shards."""
    everything = [10 * s + n for s in range(2) for n in range(6)]
    table = write_csv(tmp_path / "cc.csv", [{"url": f"http://x/{n}", "title": f"raw {n}"} for n in everything])
    for name in ("bard", "chatgpt"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} says {n}\n" for n in everything))
    fields = {"rows": str(table), "id": "url", "join": "json:url", "raw": "title"}
    texts = str(tmp_path / "{bard,chatgpt}.txt")
    assert found(opened(tmp_path, path=texts, **fields)) == expected("bard says {}", "chatgpt says {}")
    for lines in (everything[:-1], [*everything, 99]):
        (tmp_path / "bard.txt").write_text("".join(f"bard says {n}\n" for n in lines))
        with pytest.raises(DataError, match=r"bard.txt: (ends after 11 lines|has more lines than the 12 rows)"):
            opened(tmp_path, path=texts, **fields)
    with pytest.raises(DataError, match="is text without ids"):
        opened(tmp_path, path=texts)


def test_mobileclip_sidecar_tars_by_key(tmp_path: Path) -> None:
    members = [(key, {"syn.json": json.dumps({"syn_text": [f"syn {n}", "x"]}).encode(), "paug.json": b"{"}) for key, n
               in zip(KEYS, NUMBERS, strict=True)]  # fmt: skip
    write_tar(tmp_path / "dr" / "0.tar", members[:5])
    write_tar(tmp_path / "dr" / "1.tar", members[5:])
    dataset = opened(tmp_path, path=str(tmp_path / "dr"), captions="syn.json:syn_text")
    assert found(dataset) == expected("syn {}", "x")


def test_members_of_several_extensions_and_long_texts_inside_the_shards(tmp_path: Path) -> None:
    members = sample(1, original_caption="alt", caption="One. Two.") | {"syn.json": b'{"syn_text": ["s"]}'}
    shard = write_tar(tmp_path / "a.tar", [("k", members)])
    pseudo = {"dr": "syn.json:syn_text", "prose": {"place": "json:caption", "split": "sentences"}}
    data = WebdatasetData.model_validate({"shards": str(shard), "raw": "json:original_caption", "pseudo": pseudo})
    dataset = open_dataset(data, tmp_path / "cache")
    assert dataset.raw(0) == "alt"
    assert dataset.pseudo("dr", 0) == ("s",)
    assert dataset.pseudo("prose", 0) == ("One.", "Two.")


def test_jsonl_by_key_and_what_it_does_not_cover_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"key": key, "captions": "one"} for key in KEYS[:8]] + [{"key": KEYS[8], "captions": 3}]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = opened(tmp_path, path=str(path))
    assert dataset.keys == KEYS[:8]
    assert dataset.report.rejected == {"no caption from mine": 3}
    told = manifest(spec(tmp_path, path=str(path)), tmp_path / "cache")
    assert told["sources"]["mine"]["coverage"] == pytest.approx(8 / 11)
    assert told["sources"]["mine"]["joined"]["unusable_rows"] == {"caption is neither text nor a list of texts": 1}
    assert told["survivors"] == pytest.approx(8 / 11)
    assert [(file["name"], file["samples"]) for file in told["files"]] == [("00000.tar", 5), ("00001.tar", 3)]


@pytest.mark.parametrize("line", ["{", "[]", '{"id": ' + "[" * 100_000])
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps({"key": KEYS[0], "captions": "a"}) + f"\n{line}\n")
    with pytest.raises(DataError, match="line 2 is not a JSON object") as caught:
        opened(tmp_path, path=str(file))
    assert caught.value.where == str(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_pipe_is_no_file(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(DataError, match="file is missing"):
        opened(tmp_path, path=str(tmp_path / f"pipe{suffix}"))


def test_ids_of_another_sort_are_refused_with_examples_of_both(tmp_path: Path) -> None:
    rows = [{"key": str(number), "captions": ["x"]} for number in range(11)]
    with pytest.raises(DataError) as caught:
        opened(tmp_path, path=str(write_parquet(tmp_path / "c.parquet", rows)))
    text = str(caught.value)
    assert "only 0 of 11 samples have a row" in text
    assert "'000000000'" in text
    assert "'0', '1', '2'" in text


def test_captions_of_another_download_are_refused_by_the_raw_captions_beside_them(tmp_path: Path) -> None:
    """The same keys, shifted by one: as where another download lost another image."""
    rows = [{"key": key, "captions": ["x"], "alt": f"raw {n + 1}"} for key, n in zip(KEYS, NUMBERS, strict=True)]
    path = str(write_parquet(tmp_path / "c.parquet", rows))
    with pytest.raises(DataError, match=r"11 of 11 rows of .* repeat another raw caption .*belong to other data"):
        opened(tmp_path, path=path, raw="alt")


def test_changed_captions_are_read_anew_and_change_the_fingerprint(tmp_path: Path) -> None:
    rows = [{"key": key, "captions": ["x"]} for key in KEYS]
    path = write_parquet(tmp_path / "c.parquet", rows)
    before = opened(tmp_path, path=str(path)).report.fingerprint
    moved = write_parquet(tmp_path / "d.parquet", rows)
    assert opened(tmp_path, path=str(moved)).report.fingerprint == before
    write_parquet(tmp_path / "c.parquet", [*rows[:-1], {"key": KEYS[-1], "captions": ["longer"]}])
    assert opened(tmp_path, path=str(path)).report.fingerprint != before


def test_a_table_joins_by_key_or_by_a_column_of_its_own(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(number)))
    rows = [{"image": f"{n}.jpg", "caption": f"raw {n}", "id": f"u{n}"} for n in range(4)]
    table = write_csv(tmp_path / "t.csv", rows)
    by_id = write_csv(tmp_path / "by_id.csv", [{"u": f"u{n}", "c": json.dumps([f"a {n}", "b"])} for n in range(4)])
    by_key = write_csv(tmp_path / "by_key.tsv.csv", [{"key": f"{n}.jpg", "captions": f"k {n}"} for n in range(4)])
    pseudo = {
        "one": {"path": str(by_id), "id": "u", "join": "id", "captions": "c"},
        "two": {"path": str(by_key)},
    }
    dataset = open_dataset(TableData.model_validate({"path": str(table), "pseudo": pseudo}), tmp_path / "cache")
    assert [dataset.pseudo("one", n) for n in range(4)] == [(f"a {n}", "b") for n in range(4)]
    assert [dataset.pseudo("two", n) for n in range(4)] == [(f"k {n}",) for n in range(4)]


def test_where_caption_files_lie_is_no_part_of_identity(tmp_path: Path) -> None:
    one, two = (WebdatasetData.model_validate({"shards": "x", "pseudo": {"a": {"path": path}}}) for path in "ab")
    assert one.science() == two.science()
    other = WebdatasetData.model_validate({"shards": "x", "pseudo": {"a": {"path": "a", "split": "sentences"}}})
    assert other.science() != one.science()


def test_paths_of_caption_files_are_relative_to_the_spec_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'data = { kind = "webdataset", shards = "s3://bucket/x.tar", quarantine = "q.jsonl", '
        'pseudo = { a = { path = "captions", rows = "rows.csv" }, b = "json:b" } }\n'
    )
    data = load_experiment(file).data
    assert isinstance(data, WebdatasetData)
    assert data.shards == "s3://bucket/x.tar"
    assert data.quarantine == str(tmp_path / "q.jsonl")
    source = data.pseudo["a"]
    assert not isinstance(source, str)
    assert source.model_dump()["path"] == str(tmp_path / "captions")
    assert source.model_dump()["rows"] == str(tmp_path / "rows.csv")
