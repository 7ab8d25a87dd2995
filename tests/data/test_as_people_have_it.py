"""Data as people have it: each kind of trouble that lost data or trained on nonsense, and a sibling that must work."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.base.errors import DataError
from harness.config.data import TableData, WebdatasetData
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.quality.check import check_data, report
from harness.data.sources.inspection import inspect_data
from harness.data.sources.patterns import expand
from harness.data.sources.raw_samples import captions_in_cell
from harness.runs.record import DataReport
from tests.data.made import encoded, picture, sample, write_tar

RAW: dict[str, Any] = {"pseudo": {}}
PICTURES = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("caption", pa.string())])
MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def shards(tmp_path: Path, **fields: Any) -> Dataset:
    data = WebdatasetData.model_validate({"shards": str(tmp_path / "shards"), **RAW, **fields})
    return open_dataset(data, tmp_path / "cache")


def table(path: Path, **fields: Any) -> Dataset:
    return open_dataset(TableData.model_validate({"path": str(path), **fields}), cache_beside(path))


def cache_beside(path: Path) -> Path:
    folder = next(one for one in path.parents if one.is_dir())
    return folder.with_name(f"{folder.name}-cache")


def raw(dataset: Dataset) -> list[str]:
    return [dataset.raw(i) for i in range(len(dataset))]


def images(folder: Path, count: int = 4) -> list[str]:
    (folder / "img").mkdir(parents=True, exist_ok=True)
    names = [f"img/{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(picture(number, 8, 8), "PNG"))
    return names


def written(folder: Path, name: str, texts: list[str], **options: Any) -> Path:
    rows = zip(images(folder, len(texts)), texts, strict=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, **options).writerows([("image", "caption"), *rows])
    return folder / name


def plain(folder: Path, name: str, texts: list[str], separator: str = "\t") -> Path:
    rows = zip(["image", *images(folder, len(texts))], ["caption", *texts], strict=True)
    (folder / name).write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


# Keys


def test_a_key_is_unique_within_its_shard(tmp_path: Path) -> None:
    for shard in range(3):
        keyed = [
            (f"{n:04d}", {"jpg": encoded(picture(10 * shard + n)), "txt": f"{shard} {n}".encode()}) for n in range(4)
        ]
        write_tar(tmp_path / "shards" / f"{shard}.tar", keyed)
    dataset = shards(tmp_path)
    assert raw(dataset) == [f"{shard} {n}" for shard in range(3) for n in range(4)]
    assert dataset.keys == [f"{shard}/{n:04d}" for shard in range(3) for n in range(4)]
    assert dataset.keys_of([5]) == ["1/0001"]
    assert dataset.report.rejected == {}
    # within one shard it must not repeat
    write_tar(tmp_path / "shards" / "3.tar", [(key, sample(n)) for n, key in enumerate(["a", "b", "a"])])
    assert shards(tmp_path, least_share=0.9).report.rejected == {"duplicate key": 1}


def test_captions_by_key_are_refused_where_a_key_names_several_samples(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / "shards" / f"{shard}.tar", [("a", sample(shard)), ("b", sample(shard + 5))])
    captions = tmp_path / "c.jsonl"
    source = {"pseudo": {"mine": {"path": str(captions)}}}
    captions.write_text("".join(json.dumps({"key": key, "captions": key}) + "\n" for key in "ab"))
    with pytest.raises(DataError, match=r"data.pseudo.mine: 2 samples have a key that another shard has too"):
        shards(tmp_path, **source)
    keys = shards(tmp_path).keys
    captions.write_text("".join(json.dumps({"key": key, "captions": f"of {key}"}) + "\n" for key in keys))
    dataset = shards(tmp_path, **source)
    assert [dataset.pseudo("mine", i) for i in range(4)] == [("of 0/a",), ("of 0/b",), ("of 1/a",), ("of 1/b",)]


def test_embedded_images_are_known_by_table_and_row(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for folder in ("a", "b"):  # the tables' names repeat as well
        cells = pa.array([{"bytes": encoded(picture(n)), "path": f"{n % 2}.jpg"} for n in range(5)], kind)
        (tmp_path / "set" / folder).mkdir(parents=True)
        rows = pa.table({"image": cells, "caption": [f"{folder}{n}" for n in range(5)]})
        pq.write_table(rows, tmp_path / "set" / folder / "0.parquet")
    dataset = table(tmp_path / "set")
    assert raw(dataset) == [f"{folder}{n}" for folder in "ab" for n in range(5)]
    assert len(set(dataset.keys)) == 10


def test_rows_of_one_image(tmp_path: Path) -> None:
    first, second = images(tmp_path, 2)
    rows = [(first, "one"), (second, "other"), (first, "two"), (first, "three")]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{image},{text}\n" for image, text in rows))
    with pytest.raises(DataError, match=r"only 2 of 4 samples.*2 duplicate key.*least_share = 0.5.*data.repeats"):
        table(tmp_path / "t.csv")
    merged = table(tmp_path / "t.csv", repeats="captions", pseudo={"all": "caption"})
    assert raw(merged) == ["one", "other"]
    assert merged.pseudo("all", 0) == ("one", "two", "three")
    each = table(tmp_path / "t.csv", repeats="samples")
    assert raw(each) == ["one", "other", "two", "three"]
    assert len({*each.keys}) == 4
    prints = {
        merged.report.fingerprint,
        each.report.fingerprint,
        table(tmp_path / "t.csv", least_share=0.5).report.fingerprint,
    }
    assert len(prints) == 3


# Members of shards


@pytest.mark.parametrize("name", ["._{}.jpg", "__MACOSX/._{}.jpg", ".DS_Store", "README", "sub/.hidden"])
def test_members_without_a_key_are_passed_over_and_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for number in range(6):
            for member, content in [
                (f"{number}.jpg", encoded(picture(number))),
                (name.format(number), b"\0\5\x16\7"),
                (f"{number}.txt", f"raw {number}".encode()),
            ]:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    dataset = shards(tmp_path)
    assert raw(dataset) == [f"raw {number}" for number in range(6)]
    assert sum(dataset.report.skipped.values()) == 6
    (line,) = dataset.report.census()
    assert "6 members without a key" in line
    if "/" not in name:  # webdataset keys hidden files in folders by the folder, and so cuts samples apart
        theirs = list(webdataset.WebDataset(str(tmp_path / "shards" / "0.tar"), shardshuffle=False))
        assert len(theirs) == len(dataset)


@pytest.mark.parametrize("content", [b"{", b"\xef\xbb\xbf{}", b"\xff\xfe", b"[1]"])
def test_a_json_that_nothing_needs_spoils_no_sample(tmp_path: Path, content: bytes) -> None:
    members = [(str(n), sample(n) | {"json": content}) for n in range(4)]
    write_tar(tmp_path / "shards" / "0.tar", members)
    dataset = shards(tmp_path, pseudo={"captions": "json:captions"})
    assert raw(dataset) == [f"raw {n}" for n in range(4)]
    assert dataset.sources == ()
    # where others have its captions, the sample is left out under the reason
    write_tar(tmp_path / "shards" / "1.tar", [(f"x{n}", sample(n)) for n in range(4)])
    both = shards(tmp_path, pseudo={"captions": "json:captions"}, least_share=0)
    assert len(both) == 4
    assert sum(both.report.rejected.values()) == 4


def test_a_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    members = sample(1) | {"json": b"\xef\xbb\xbf" + sample(1)["json"], "txt": b"\xef\xbb\xbfraw"}
    write_tar(tmp_path / "shards" / "0.tar", [("a", members)])
    dataset = shards(tmp_path, pseudo={"captions": "json:captions"})
    assert (dataset.raw(0), dataset.pseudo("captions", 0)) == ("raw", ("first 1", "second 1"))


def test_links_repeats_and_what_follows_the_end_are_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shards" / "0.tar", [("a", sample(1) | {"JPG": b"x"}), ("b", sample(2))])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "b.jpg"
        tar.addfile(link)
    path.write_bytes(path.read_bytes() + path.read_bytes())
    skipped = shards(tmp_path).report.skipped
    assert skipped == {
        "links and special files in tar files": 1,
        "members that repeat an extension of their sample": 1,
        "tar files with data after their end mark": 1,
    }


def test_img2datasets_layout_of_files(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "shards" / f"{number // 3:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        for extension, content in sample(number).items():
            (folder / f"{number:09d}.{extension}").write_bytes(content)
    (tmp_path / "shards" / "00000_stats.json").write_text("{}")
    files = shards(tmp_path, pseudo={"captions": "json:captions"})
    assert raw(files) == [f"raw {number}" for number in range(6)]
    assert files.pseudo("captions", 4) == ("first 4", "second 4")
    difference = np.asarray(files.image(5), dtype=int) - np.asarray(picture(5), dtype=int)
    assert np.abs(difference).mean() < 8
    packed = write_tar(tmp_path / "packed" / "0.tar", [(f"{n:09d}", sample(n)) for n in range(6)])
    data = WebdatasetData.model_validate({"shards": str(packed)})
    assert inspect_data(data, tmp_path / "cache").fingerprint == files.report.fingerprint
    (tmp_path / "shards" / "00001" / "000000005.txt").write_text("another")
    assert raw(shards(tmp_path))[5] == "another"


# Paths


def test_only_what_is_written_as_a_pattern_is_one(tmp_path: Path) -> None:
    for folder in ("exp [v2]", "a{b,c}", "what?", "all*"):
        path = write_tar(tmp_path / folder / "shards" / "0.tar", [("a", sample(1))])
        for pattern in ("*.tar", "{0,0}.tar", "[0-9].tar", "0.tar", ""):
            assert expand(f"{path.parent}/{pattern}".rstrip("/")) == [path], (folder, pattern)
        with pytest.raises(DataError, match="matches no file"):
            expand(f"{path.parent}/x*.tar")


@pytest.mark.parametrize("extension", ["JPG", "Png", "gif"])
def test_folders_and_shards_in_capital_letters(tmp_path: Path, extension: str) -> None:
    """A folder of `files` layout whose only picture ends so is not passed over, nor a shard called .TAR."""
    for number, form in enumerate((extension, "png")):
        (tmp_path / "shards" / f"{number}").mkdir(parents=True)
        (tmp_path / "shards" / f"{number}" / f"k.{form}").write_bytes(encoded(picture(number), "PNG"))
        (tmp_path / "shards" / f"{number}" / "k.txt").write_text(f"text {number}")
    assert raw(shards(tmp_path)) == ["text 0", "text 1"]
    paths = [write_tar(tmp_path / "tars" / name, [(name[0], sample(1))]) for name in ("a.tar", "b.TAR")]
    assert expand(str(tmp_path / "tars")) == paths


def test_the_first_of_several_tables_holds_no_usable_picture(tmp_path: Path) -> None:
    for number, content in enumerate((b"", encoded(picture(1), "PNG"))):
        row = {"image": {"bytes": content, "path": None}, "caption": "a" if number else None}
        pq.write_table(pa.Table.from_pylist([row], PICTURES), tmp_path / f"{number}.parquet")
    dataset = table(tmp_path, least_share=0)
    assert (raw(dataset), dataset.image(0).size, dataset.report.rejected) == (["a"], (40, 30), {"no raw caption": 1})


def test_joined_stepped_and_nested_shards(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n % 2}" / f"{n:03d}.tar", [(f"{n}", sample(n))]) for n in range(6)]
    assert expand(f"{tmp_path}/0::{tmp_path}/1/003.tar") == [paths[0], paths[2], paths[4], paths[3]]
    assert expand(f"{tmp_path}/0/{{000..004..2}}.tar") == paths[:6:2]
    assert expand(str(tmp_path)) == paths[::2] + paths[1::2]


def test_what_lies_beside_the_shards_of_a_folder_is_said(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "0.tar", [("a", sample(1))])
    assert shards(tmp_path).report.census() == []
    (tmp_path / "shards" / "1.tar.gz").write_bytes(b"\x1f\x8b")
    write_tar(tmp_path / "shards" / "old" / "2.tar", [("b", sample(2))])
    (tmp_path / "cache").rename(tmp_path / "before")
    below, packed = shards(tmp_path).report.census()
    assert "1 files in sub-folders are not read (old/2.tar first)" in below
    assert "1 compressed files are not read (1.tar.gz first)" in packed
    (tmp_path / "shards" / "old" / "3.tar.zst").touch()
    (tmp_path / "before").rename(tmp_path / "older")
    (tmp_path / "cache").rename(tmp_path / "before")
    assert "2 compressed files are not read (1.tar.gz first)" in shards(tmp_path).report.census()[1]
    (tmp_path / "shards" / "0.tar").unlink()
    (tmp_path / "shards" / "old" / "2.tar").unlink()
    with pytest.raises(DataError, match="1 shards are compressed"):
        shards(tmp_path)


@pytest.mark.parametrize(
    "name", ["{}-00000-of-00001.parquet", "{}.parquet", "{}/0.parquet", "cc3m-{}-0000.parquet", "{}_1.parquet"]
)
def test_splits_are_asked_about(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    for number, split in enumerate(("train", "val", "test")):
        file = tmp_path / "set" / name.format(split)
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [encoded(picture(number))], "caption": [split]}), file)
    for path in (tmp_path / "set", tmp_path / "set" / "*" if "/" not in name else tmp_path / "set" / "*" / "*"):
        with pytest.raises(DataError, match=r'holds several splits \(.*data.split = "train"'):
            table(path)
    for split in ("train", "validation", "val", "test"):
        assert raw(table(tmp_path / "set", split=split)) == [split.replace("validation", "val")]
    named = f"{tmp_path}/set/{name.format('{train,val}')}"
    assert raw(table(Path(named))) == ["train", "val"]
    with pytest.raises(DataError, match=r"no file belongs to the split 'dogs'"):
        table(tmp_path / "set", split="dogs")


def test_one_split_and_folders_that_are_called_like_splits_above_are_no_question(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / "test" / "shards" / f"train-{number}.tar", [(str(number), sample(number))])
    assert len(shards(tmp_path / "test")) == 2


# Text tables


STRAY = ['"5 inch disc', "a red disc", 'a "blue" disc', '"another', "plain", 'end"', "last"]


def test_a_stray_quote_in_a_tsv_is_text(tmp_path: Path) -> None:
    dataset = table(plain(tmp_path, "t.tsv", STRAY))
    assert raw(dataset) == STRAY
    assert any("2 cells begin with a quote; they are taken as text" in note for note in dataset.report.notes)
    closing = ['"5 inch disc', "a red disc", 'as wide as 5"', "last"]  # as CSV this is one well-formed row
    assert raw(table(plain(tmp_path / "b", "t.tsv", closing))) == closing


def test_a_tsv_that_is_quoted_is_read_so(tmp_path: Path) -> None:
    texts = ['he said "hello"', "two\nlines", "a\ttab", "plain"]
    assert raw(table(written(tmp_path, "t.tsv", texts, delimiter="\t"))) == texts
    frame = pd.DataFrame({"image": images(tmp_path), "caption": texts})
    frame.to_csv(tmp_path / "pandas.tsv", sep="\t", index=False)
    assert raw(table(tmp_path / "pandas.tsv")) == texts


def test_a_stray_quote_in_a_csv_is_an_error_with_the_line(tmp_path: Path) -> None:
    path = plain(tmp_path, "t.csv", ["fine", *STRAY[:4]], ",")
    with pytest.raises(DataError, match=r"t.csv: the row that begins in line 3 cannot be read.*data.quoting = false"):
        table(path)
    assert raw(table(path, quoting=False)) == ["fine", *STRAY[:4]]
    swallowed = plain(tmp_path / "b", "t.csv", ['"5 inch', "a disc", '5"', "x"], ",")
    dataset = table(swallowed)
    assert len(dataset) == 2
    assert any("1 quoted cells hold lines that look like rows" in line for line in dataset.report.census())


@pytest.mark.parametrize(("separator", "called"), [("\t", "tabs"), (";", "semicolons"), ("|", "bars")])
def test_a_csv_with_another_separator_is_read_and_said(tmp_path: Path, separator: str, called: str) -> None:
    texts = ["a, b", "c", "d;e|f" if separator == "\t" else "d", "g"]
    path = written(tmp_path, "t.csv", texts, delimiter=separator)
    dataset = table(path)
    assert raw(dataset) == raw(table(path, separator=separator)) == texts
    assert any(f"separated by {called}" in note for note in dataset.report.notes)
    assert table(path, separator=separator).report.notes == ()
    with pytest.raises(DataError, match="has no column"):
        table(path, separator=",")


def test_only_the_columns_that_are_used_matter(tmp_path: Path) -> None:
    names = images(tmp_path, 3000)
    odd = ["1"] * 2999 + ["not a number"]
    frame = pd.DataFrame({"image": names, "id": odd, "caption": [f"c{n}" for n in range(3000)]})
    frame.to_csv(tmp_path / "t.csv")
    assert len(table(tmp_path / "t.csv")) == 3000


def test_rows_of_another_width_and_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    path = plain(tmp_path, "t.csv", ["a", "b, c", "d"], ",")
    with pytest.raises(DataError, match=r"line 3 has 3 cells, and the header 2"):
        table(path)
    path.write_bytes(path.read_text().replace("b, c", "bä").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        table(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().decode("latin-1").replace("\n", "\r\n").encode() + b"\r\n")
    assert raw(table(path)) == ["a", "bä", "d"]
    path.write_text("image,caption,caption\nimg/0.png,a,b\n")
    with pytest.raises(DataError, match="several columns 'caption'"):
        table(path)


@pytest.mark.parametrize(
    "texts", [["one"], ["one", "two"], ["it's", 'a "b"'], ["a, b", "[c]"], ["ä", "new\nline"], ["back\\slash", "'"]]
)
def test_lists_are_read_however_they_are_written(texts: list[str]) -> None:
    expected = tuple(texts)
    forms = [texts, json.dumps(texts), repr(texts), repr(tuple(texts)), str(np.array(texts, dtype=object))]
    assert [captions_in_cell(form) for form in forms] == [expected] * len(forms)


@pytest.mark.parametrize("text", ["[SOLD] red car", "[red, blue]", "(one) and (two)", "[1", "('Untitled')", '"a", "b"'])
def test_texts_with_brackets_are_no_lists(text: str) -> None:
    assert captions_in_cell(text) == (text,)


def test_pandas_lists_become_captions_and_are_said(tmp_path: Path) -> None:
    lists = [[f"photo {n}", "another"] for n in range(4)]
    frame = pd.DataFrame({"image": images(tmp_path), "caption": lists})
    frame.to_csv(tmp_path / "t.csv", index=False)
    dataset = table(tmp_path / "t.csv", pseudo={"all": "caption"})
    assert raw(dataset) == [f"photo {n}" for n in range(4)]
    assert dataset.pseudo("all", 1) == ("photo 1", "another")
    assert "4 raw captions are lists of captions" in dataset.report.census()[0]
    (tmp_path / "bad.csv").write_text("image,caption\nimg/0.png,\"['a', 'b\"\nimg/1.png,\"['a' b 'c']\"\n")
    assert table(tmp_path / "bad.csv", least_share=0).report.rejected == {"list of captions unreadable": 1}


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "null", "", "  "])
def test_missing_captions_are_missing(tmp_path: Path, missing: str) -> None:
    path = plain(tmp_path, "t.csv", [missing, "none of them", "nan bread", "Null Island"], ",")
    dataset = table(path, least_share=0.7)
    assert raw(dataset) == ["none of them", "nan bread", "Null Island"]
    assert dataset.report.rejected == {"no raw caption": 1}


@MANY
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=30),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([".csv", ".tsv", "pandas.csv", "pandas.tsv", ".parquet"]),
)
def test_any_table_reads_back_and_the_census_adds_up(tmp_path: Path, texts: list[str], kind: str) -> None:
    names = images(tmp_path, len(texts))
    frame = pd.DataFrame({"image": names, "caption": texts})
    path, separator = tmp_path / f"t{kind}", "\t" if kind.endswith("tsv") else ","
    if kind == ".parquet":
        pq.write_table(pa.table({"image": names, "caption": texts}), path)
    elif "pandas" in kind:
        frame.to_csv(path, sep=separator, index=False)
    else:
        written(tmp_path, path.name, texts, delimiter=separator, lineterminator="\n")
    try:
        dataset = table(path, least_share=0)
    except DataError as error:
        # never a wrong text: an ambiguous table is refused with the key that settles it, or has no caption at all
        if "data.quoting" not in str(error) and "no usable sample" not in str(error):
            raise
        return
    expected = {name: captions_in_cell(text)[:1] for name, text in zip(names, texts, strict=True)}
    assert {key: (dataset.raw(i),) for i, key in enumerate(dataset.keys)} == {k: v for k, v in expected.items() if v}
    assert dataset.report.samples + sum(dataset.report.rejected.values()) == len(texts)


# Pictures


def test_deep_pictures_are_scaled(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    flat = (np.asarray(Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB"))).astype(int)
    members = {"png": encoded(Image.fromarray(grey), "PNG"), "txt": b"a"}
    write_tar(tmp_path / "shards" / "0.tar", [("a", members)])
    dataset = shards(tmp_path)
    assert np.abs(np.asarray(dataset.image(0)).astype(int) - flat).max() <= 1
    assert dataset.report.census() == ["1 pictures have 16 bits, which are scaled to 8"]
    floats = encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF")
    write_tar(tmp_path / "shards" / "0.tar", [("a", {"tif": floats, "txt": b"a"})])
    with pytest.raises(DataError, match="1 image of floating-point numbers"):
        shards(tmp_path)


def test_orientation_transparency_and_cmyk_are_open_clips_unless_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    picture(1).save(turned, "JPEG", exif=exif)
    clear = picture(2).convert("RGBA")
    clear.putalpha(0)
    forms = {"jpg": turned.getvalue(), "png": encoded(clear, "PNG"), "jpeg": encoded(picture(3).convert("CMYK"))}
    samples = [(name, {name: content, "txt": name.encode()}) for name, content in forms.items()]
    write_tar(tmp_path / "shards" / "0.tar", samples)
    plain = shards(tmp_path)
    for i, content in enumerate(forms.values()):
        theirs = Image.open(io.BytesIO(content)).convert("RGB")  # open_clip's _convert_to_rgb
        assert np.array_equal(np.asarray(plain.image(i)), np.asarray(theirs))
    assert {line.split(" pictures ")[0] for line in plain.report.census()} == {"1"}
    assert len(plain.report.census()) == 3
    other = shards(tmp_path, pictures={"exif": "apply", "alpha": "white", "cmyk": "reject"}, least_share=0.5)
    assert other.image(0).size == tuple(other.sizes[0]) == (30, 40)
    assert np.asarray(other.image(1)).min() == 255
    assert other.report.rejected == {"image is CMYK": 1}
    assert shards(tmp_path, pictures={"exif": "apply"}).report.fingerprint != plain.report.fingerprint


# The census


def test_too_few_survivors_are_an_error_with_reasons_and_key(tmp_path: Path) -> None:
    samples = [(str(n), sample(n) if n else {"txt": b"x"}) for n in range(12)]
    write_tar(tmp_path / "shards" / "0.tar", samples)
    with pytest.raises(
        DataError, match=r"only 11 of 12 samples can be used \(left out: 1 no image\).*data.least_share = 0.91"
    ):
        shards(tmp_path)
    found = shards(tmp_path, least_share=0.91).report
    assert found.census() == ["11 of 12 samples are trained on; left out: 1 no image"]
    assert DataReport.model_validate_json(found.model_dump_json()) == found
    (tmp_path / "q.jsonl").write_text(json.dumps({"key": "0", "location": "0.tar", "reason": "no image"}) + "\n")
    assert shards(tmp_path, quarantine=str(tmp_path / "q.jsonl")).report.rejected == {"quarantined": 1}


def test_the_least_share_is_no_part_of_what_is_read(tmp_path: Path) -> None:
    assert WebdatasetData(shards="a", least_share=0.5).science(defaults=True) == WebdatasetData(shards="b").science(
        defaults=True
    )


def test_what_looks_wrong_is_shown_by_data_check(tmp_path: Path) -> None:
    samples = [(str(n), sample(n)) for n in range(4)]
    samples[2][1]["jpg"] = encoded(Image.new("RGB", (40, 40), "red"))
    for n, text in enumerate(["['a', 'b']", "one\ntwo, three"]):
        samples[n][1]["json"] = json.dumps({"captions": [text]}).encode()
    write_tar(tmp_path / "shards" / "0.tar", samples)
    odd = report(check_data(WebdatasetData(shards=str(tmp_path / "shards")), tmp_path / "cache", 1, lambda _: None))[
        "odd"
    ]
    assert {what: found["count"] for what, found in odd.items()} == {
        "image: a single colour": 1,
        "captions caption: a list": 1,
        "captions caption: several lines, like rows of a table": 1,
    }


def test_damaged_long_names_do_not_become_other_samples(tmp_path: Path) -> None:
    """Python before 3.11.10 leaves out a pax record that it cannot read, and takes the name that was cut."""
    name = "a" * 120
    path = write_tar(tmp_path / "shards" / "0.tar", [("first", sample(0)), (name, sample(1))])
    content = path.read_bytes()
    place = content.index(b"path=" + name.encode()[:10])
    broken = bytearray(content)
    broken[place - 4 : place - 1] = b"99x"  # the record's length
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match="is damaged at byte"):
        shards(tmp_path, least_share=0)


def test_a_fuzzer_finds_no_wrong_text(tmp_path: Path) -> None:
    """Random damage to text tables: every text that is read is one that was written, or the table is refused."""
    dice = random.Random(5)
    names = images(tmp_path, 5)
    for number in range(150):
        kind = dice.choice([".csv", ".tsv"])
        separator = "\t" if kind == ".tsv" else ","
        texts = ["".join(dice.choice("ab \"',;|ä") for _ in range(dice.randint(1, 12))).strip() or "x" for _ in names]
        path = tmp_path / f"{number}{kind}"
        if dice.random() < 0.5:
            with path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream, delimiter=separator).writerows(
                    [("image", "caption"), *zip(names, texts, strict=True)]
                )
        else:
            lines = [separator.join(row) for row in [("image", "caption"), *zip(names, texts, strict=True)]]
            path.write_text("\n".join(lines) + "\n")
        try:
            dataset = table(path, least_share=0)
        except DataError as error:
            if os.linesep in str(error):
                raise
            continue
        expected = dict(zip(names, texts, strict=True))
        said = dataset.report.census()
        for i, key in enumerate(dataset.keys):
            found, truth = dataset.raw(i), captions_in_cell(expected[key])
            assert (truth and found == truth[0]) or said, (number, found, truth)
