from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from harness.base.errors import DataError
from harness.config.data import WebdatasetData
from harness.data.dataset.dataset import Dataset, open_dataset
from tests.data.made import encoded, picture, sample, two_shards, write_tar


def opened(tmp_path: Path, shards: object, **fields: object) -> Dataset:
    data = WebdatasetData.model_validate({"shards": str(shards), "least_share": 0, **fields})
    return open_dataset(data, tmp_path / "cache")


def test_img2dataset_shards_are_read_whole(tmp_path: Path) -> None:
    dataset = opened(tmp_path, two_shards(tmp_path / "shards") / "{00000..00001}.tar")
    assert dataset.keys == [f"{s:05d}{n:04d}" for s in range(2) for n in range(6) if (s, n) != (0, 3)]
    assert dataset.report.samples == len(dataset) == 11
    assert dataset.report.rejected == {}
    assert dataset.sources == ("captions",)
    assert dataset.truth is None
    for i, key in enumerate(dataset.keys):
        number = 10 * int(key[:5]) + int(key[5:])
        assert dataset.raw(i) == f"raw {number}"
        assert dataset.pseudo("captions", i) == (f"first {number}", f"second {number}")
        difference = np.asarray(dataset.image(i), dtype=int) - np.asarray(picture(number), dtype=int)
        assert np.abs(difference).mean() < 8
    assert dataset.caption_counts("captions").tolist() == [2] * 11
    assert dataset.sizes.tolist() == [[40, 30]] * 11


def test_what_webdatasets_writer_wrote_is_read_like_webdataset_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%03d.tar"), maxcount=5, verbose=0) as writer:
        for number in range(12):
            row = {"texts": [f"text {number}.{position}" for position in range(number % 3 + 1)]}
            caption = f"Bild {number}: Äpfel,\n\n zwei"
            writer.write({"__key__": f"sub/{number:04d}", "jpg": encoded(picture(number)), "txt": caption, "json": row})
    urls = sorted(str(path) for path in folder.iterdir())
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    ours = opened(tmp_path, folder, pseudo={"mine": "json:texts"})
    assert len(ours) == len(theirs) == 12
    for i, expected in enumerate(theirs):
        assert ours.keys[i] == expected["__key__"]
        assert ours.raw(i).split() == expected["txt"].split()
        assert "\n" not in ours.raw(i)
        assert ours.pseudo("mine", i) == tuple(expected["json"]["texts"])
        assert np.array_equal(np.asarray(ours.image(i)), np.asarray(expected["jpg"].convert("RGB")))
    assert ours.caption_counts("mine").tolist() == [number % 3 + 1 for number in range(12)]


def test_raw_and_pseudo_captions_may_stand_elsewhere(tmp_path: Path) -> None:
    members = {
        "jpg": encoded(picture(1)),
        "blip.txt": b"one\n\n two \n",
        "json": json.dumps({"alt": " x ", "one": "y"}).encode(),
    }
    shard = write_tar(tmp_path / "a.tar", [("k", members)])
    dataset = opened(tmp_path, shard, raw="json:alt", pseudo={"blip": "blip.txt", "other": "json:one"})
    assert dataset.raw(0) == "x"
    assert dataset.sources == ("blip", "other")
    assert dataset.pseudo("blip", 0) == ("one", "two")
    assert dataset.pseudo("other", 0) == ("y",)


def test_a_source_that_no_sample_has_is_absent_and_named_when_asked_for(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("k", {"jpg": encoded(picture(1)), "txt": b"raw"})])
    dataset = opened(tmp_path, shard)
    assert len(dataset) == 1
    assert dataset.sources == ()
    with pytest.raises(DataError, match=r"'captions'.*there are: none"):
        dataset.pseudo("captions", 0)
    with pytest.raises(DataError, match="'captions'"):
        dataset.caption_counts("captions")


def huge_png() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_each_bad_sample_is_left_out_under_its_reason(tmp_path: Path) -> None:
    whole = {form: sample(7, form=form) for form in ("JPEG", "PNG", "WEBP")}

    def without(*names: str) -> dict[str, bytes]:
        return {name: content for name, content in sample(3).items() if name not in names}

    samples = [
        ("good", sample(1)),
        ("no-image", without("jpg")),
        ("no-text", without("txt")),
        ("blank", sample(2) | {"txt": b" \n\t"}),
        ("latin", sample(2) | {"txt": "\xc4pfel".encode("latin-1")}),
        ("no-json", without("json")),
        ("bad-json", sample(2) | {"json": b"{"}),
        ("list-json", sample(2) | {"json": b"[1]"}),
        ("numbers", sample(2, captions=[1, 2])),
        ("surrogate", sample(2) | {"json": b'{"captions": "\\ud800"}'}),
        ("empty-list", sample(2, captions=[])),
        ("empty", sample(2) | {"jpg": b""}),
        ("html", sample(2) | {"jpg": b"<html>gone</html>"}),
        ("cut-jpeg", whole["JPEG"] | {"jpg": whole["JPEG"]["jpg"][:-40]}),
        ("cut-png", whole["PNG"] | {"png": whole["PNG"]["png"][:-40]}),
        ("cut-webp", whole["WEBP"] | {"webp": whole["WEBP"]["webp"][:-40]}),
        ("huge", {"png": huge_png(), "txt": b"huge", "json": sample(1)["json"]}),
        ("good", sample(4)),
        ("last", sample(5)),
    ]
    dataset = opened(tmp_path, write_tar(tmp_path / "a.tar", samples))
    assert dataset.keys == ["good", "last"]
    assert dataset.report.samples == 2
    assert dataset.report.rejected == {
        "no image": 1,
        "no raw caption": 2,
        "txt is not UTF-8": 1,
        "no caption from captions": 2,
        "json unreadable from captions": 2,
        "caption is neither text nor a list of texts from captions": 1,
        "caption is not Unicode from captions": 1,
        "image is empty": 1,
        "image unreadable": 2,
        "image damaged": 2,
        "image too large": 1,
        "duplicate key": 1,
    }
    assert dataset.image(1).size == (40, 30)


def test_damage_that_no_header_shows_is_named_on_reading_and_left_out_on_request(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), "PNG"))
    content[len(content) // 2] ^= 0xFF
    samples = [("bad", sample(1, form="PNG") | {"png": bytes(content)}), ("good", sample(2))]
    shard = write_tar(tmp_path / "a.tar", samples)
    dataset = opened(tmp_path, shard)
    with pytest.raises(DataError) as caught:
        dataset.image(0)
    assert f"{shard}: bad" in str(caught.value)
    assert 'data.verify = "decode"' in str(caught.value)
    strict = opened(tmp_path, shard, verify="decode")
    assert strict.keys == ["good"]
    assert strict.report.rejected == {"image damaged": 1}


def test_a_jpeg_with_padding_after_its_end_is_good(tmp_path: Path) -> None:
    members = sample(1) | {"jpg": sample(1)["jpg"] + bytes(500)}
    assert len(opened(tmp_path, write_tar(tmp_path / "a.tar", [("k", members)]))) == 1


def test_odd_modes_become_rgb(tmp_path: Path) -> None:
    modes = ["L", "P", "LA", "RGBA", "1", "CMYK"]
    forms = ["PNG"] * 5 + ["JPEG"]
    images = [encoded(picture(1).convert(mode), form) for mode, form in zip(modes, forms, strict=True)]
    samples = [(mode, sample(1) | {"jpg": image}) for mode, image in zip(modes, images, strict=True)]
    dataset = opened(tmp_path, write_tar(tmp_path / "a.tar", samples))
    assert len(dataset) == len(modes)
    assert {dataset.image(i).mode for i in range(len(dataset))} == {"RGB"}


def test_no_usable_sample_is_refused_with_the_reasons(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a", {"txt": b"x"}), ("b", {"jpg": encoded(picture(1))})])
    with pytest.raises(DataError, match=r"no usable sample.*1 no image, 1 no raw caption"):
        opened(tmp_path, shard)
    with pytest.raises(DataError, match=r"no usable sample.*it is empty"):
        opened(tmp_path, write_tar(tmp_path / "empty.tar", []))


def test_more_files_than_may_be_open_are_read(tmp_path: Path) -> None:
    for number in range(150):
        write_tar(tmp_path / "shards" / f"{number:03d}.tar", [(f"k{number}", sample(number))])
    dataset = opened(tmp_path, tmp_path / "shards")
    for i in (*range(150), 0, 149):
        assert dataset.raw(i) == f"raw {i}"
        assert dataset.image(i).size == (40, 30)


def test_an_index_of_many_batches_reads_like_one_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [(f"k{number}", sample(number)) for number in range(11)]
    samples[4] = ("k4", sample(4, captions=[]))
    shard = write_tar(tmp_path / "a.tar", samples)
    whole = opened(tmp_path / "one", shard)
    monkeypatch.setattr("harness.data.dataset.index.ROWS_PER_BATCH", 3)
    parts = opened(tmp_path / "many", shard)
    assert parts.report == whole.report
    assert parts.keys == whole.keys == [f"k{number}" for number in range(11) if number != 4]
    for i in range(10):
        assert parts.raw(i) == whole.raw(i) == whole.keys[i].replace("k", "raw ")
        assert parts.pseudo("captions", i) == whole.pseudo("captions", i)
        assert np.array_equal(np.asarray(parts.image(i)), np.asarray(whole.image(i)))
    assert parts.caption_counts("captions").tolist() == [2] * 10
    assert np.array_equal(parts.sizes, whole.sizes)


def test_a_shard_that_vanishes_is_named_when_it_is_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("k", sample(1))])
    dataset = opened(tmp_path, shard)
    shard.unlink()
    with pytest.raises(DataError, match=r"a.tar: the image of sample k cannot be read \(No such file or directory\)"):
        dataset.image(0)
