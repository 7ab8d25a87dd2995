"""`harness data check` on archives that go wrong: everything is counted under its reason, nothing crashes."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.base.errors import DataError
from harness.config.data import FileData, TableData, WebdatasetData
from harness.data.dataset.dataset import open_dataset
from harness.data.quality.check import Findings, check_data, report
from harness.data.sources.inspection import inspect_data
from harness.data.sources.quarantine import read_quarantine, write_quarantine
from harness.data.sources.tar import Archive
from tests.data.made import encoded, picture, sample, two_shards, write_tar
from tests.data.test_shards import huge_png


def checked(tmp_path: Path, shards: Path, **fields: Any) -> Findings:
    data = WebdatasetData.model_validate({"shards": str(shards), **fields})
    return check_data(data, tmp_path / "cache", 1, lambda _: None)


def test_good_shards_have_nothing_to_say(tmp_path: Path) -> None:
    told = report(checked(tmp_path, two_shards(tmp_path / "shards")))
    assert told["samples"] == 11
    assert told["rejected"] == told["odd"] == {}
    assert told["images"]["formats"] == {"JPEG": 3, "PNG": 4, "WEBP": 4}
    assert told["images"]["shorter_side_px"]["p50"] == 30
    assert told["captions"]["captions"]["captions"] == 22
    assert told["captions"]["raw"]["words"]["p50"] == 2
    assert told["warnings"] == []


def test_processes_find_what_one_finds(tmp_path: Path) -> None:
    shards = two_shards(tmp_path / "shards")
    data = WebdatasetData(shards=str(shards))
    one, two = (report(check_data(data, tmp_path / "cache", n, lambda _: None)) for n in (1, 2))
    assert one == two


def test_every_sort_of_damage_is_counted_and_what_is_listed_is_left_out(tmp_path: Path) -> None:
    shards = two_shards(tmp_path / "shards")
    whole = (shards / "00001.tar").read_bytes()
    samples = [
        ("wrong", sample(1) | {"jpg": encoded(picture(20), "PNG")}),
        ("bomb", {"png": huge_png(), "txt": b"x", "json": sample(1)["json"]}),
        ("../../../etc/evil", sample(2)),
        ("/tmp/evil", sample(3)),
        ("latin", sample(4) | {"txt": "Äpfel".encode("latin-1")}),
        ("zero", sample(5) | {"jpg": b""}),
        ("text", sample(6) | {"jpg": b"#!/bin/sh\nrm -rf /"}),
        ("tiny", sample(7) | {"jpg": encoded(Image.new("L", (200, 8)))}),
        ("html", sample(8) | {"txt": b"Tom &amp; Jerry <b>x</b>"}),
        ("long", sample(9) | {"txt": b"word " * 100}),
        ("cut", sample(10) | {"jpg": sample(10)["jpg"][:-40]}),
        ("html", sample(11)),
    ]
    write_tar(shards / "00002.tar", samples)
    (shards / "00003.tar").write_bytes(whole[: len(whole) // 2])
    (shards / "00004.tar").write_bytes(b"")
    (shards / "00005.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    data = WebdatasetData(shards=str(shards))
    before = {path: path.read_bytes() for path in shards.rglob("*")}
    found = check_data(data, tmp_path / "cache", 2, lambda _: None)
    told = report(found)
    reasons = told["rejected"]
    assert reasons["image too large"] == reasons["txt is not UTF-8"] == reasons["image is empty"] == 1
    assert reasons["image unreadable"] == reasons["image damaged"] == 1
    assert reasons["shard is truncated"] == 2
    assert reasons["shard is compressed"] == 1
    assert reasons["duplicate key"] == 1  # 00003 holds keys of 00001, which is no fault
    odd = {what: one["count"] for what, one in told["odd"].items()}
    assert odd["image: PNG under another extension"] == 1
    assert odd["image: shorter side below 24 px"] == 1
    assert odd["image: sides differ by more than 4 times"] == 1
    assert odd["raw caption: HTML"] == 1
    assert odd["raw caption: longer than 77 tokens: its end is never seen"] == 1
    assert {path: path.read_bytes() for path in shards.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "shards"]
    assert list((tmp_path / "cache").iterdir()) == []

    with pytest.raises(DataError):
        inspect_data(data, tmp_path / "cache")
    write_quarantine(tmp_path / "q.jsonl", found.quarantined)
    filtered = WebdatasetData(shards=str(shards), quarantine=str(tmp_path / "q.jsonl"), least_share=0.9)
    trained = inspect_data(filtered, tmp_path / "cache")
    assert trained.samples == told["samples"]
    assert trained.rejected["shard damaged, quarantined"] == 3
    assert trained.rejected["quarantined"] == 5
    dataset = open_dataset(filtered, tmp_path / "cache")
    assert all(dataset.image(i).mode == "RGB" for i in range(len(dataset)))


def test_a_list_that_is_missing_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    shards = two_shards(tmp_path / "shards")
    data = WebdatasetData(shards=str(shards), quarantine=str(tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match=r"quarantine list is missing; `harness data check"):
        inspect_data(data, tmp_path / "cache")
    (tmp_path / "q.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="quarantine list is damaged"):
        read_quarantine(data.quarantine)


def test_captions_that_are_shifted_are_warned_of(tmp_path: Path) -> None:
    """Each raw caption speaks of its own number; the pseudo-captions speak of the number before."""
    image = sample(0)["jpg"]

    def made(shift: int) -> Path:
        samples = [
            (f"k{n:04d}", {"jpg": image, "txt": f"{n} seen {n * n}".encode(),
             "json": json.dumps({"captions": [f"picture of {n - shift} and {(n - shift) ** 2}"]}).encode()})
            for n in range(300)
        ]  # fmt: skip
        return write_tar(tmp_path / f"{shift}.tar", samples)

    assert report(checked(tmp_path, made(0)))["warnings"] == []
    (warning,) = report(checked(tmp_path, made(1)))["warnings"]
    assert "may be misaligned" in warning


def test_table_rows_and_the_images_that_parquet_embeds(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    cells = [encoded(picture(0)), b"junk", encoded(picture(2))[:-200]]
    pyarrow.parquet.write_table(pa.table({"image": cells, "caption": ["a", "b", "c"]}), tmp_path / "a.parquet")
    data = TableData(path=str(tmp_path / "a.parquet"))
    found = check_data(data, tmp_path / "cache", 1, lambda _: None)
    assert report(found)["rejected"] == {"image unreadable": 1, "image damaged": 1}
    write_quarantine(tmp_path / "q.jsonl", found.quarantined)
    filtered = TableData(path=str(tmp_path / "a.parquet"), quarantine=str(tmp_path / "q.jsonl"))
    assert inspect_data(filtered, tmp_path / "cache").rejected == {"quarantined": 2}


@pytest.fixture(scope="module")
def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            for extension, content in sample(number).items():
                info = tarfile.TarInfo(f"{'long' * (40 * (number % 2))}{number}ü.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), flips=st.integers(0, 60), keep=st.floats(0.0, 1.0), in_headers=st.booleans())
@example(seed=69668, flips=4, keep=1.0, in_headers=False)  # one JSON is not UTF-8: a sample without pseudo-captions
def test_fuzzed_archives_never_crash_and_never_write(
    tmp_path: Path, archive: bytes, seed: int, flips: int, keep: float, in_headers: bool
) -> None:
    """Random bytes changed (in headers, with checksums corrected, or anywhere), and the end cut off."""
    chance = random.Random(seed)
    content = bytearray(archive)
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    for _ in range(flips):
        at = chance.choice(headers) + chance.randrange(512) if in_headers else chance.randrange(len(content))
        content[at] = chance.choice([0, 0x2D, 0x37, 0x80, 0xFF, chance.randrange(256)])
    if in_headers:
        for at in headers:
            header = content[at : at + 512]
            total = sum(header) - sum(header[148:156]) + 8 * 32
            content[at + 148 : at + 156] = b"%06o\0 " % total
    folder = tmp_path / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(content[: int(keep * len(content))])
    data: FileData = WebdatasetData(shards=str(folder / "a.tar"))
    found = check_data(data, tmp_path / "cache", 1, lambda _: None)
    assert json.dumps(report(found))
    assert found.samples <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "fuzzed"]
    try:
        assert inspect_data(data, tmp_path / "index").samples >= found.samples
    except DataError:
        told = any(reason.startswith("shard") for reason in found.rejected) or any(found.without.values())
        assert found.samples == 0 or told, "what opening refuses, the check has told"
    finally:
        for file in (tmp_path / "index").glob("*/*"):
            file.unlink()
        for made in (tmp_path / "index").glob("*"):
            made.rmdir()
        if (tmp_path / "index").exists():
            (tmp_path / "index").rmdir()


def test_a_header_that_points_back_at_itself_ends(tmp_path: Path) -> None:
    """A size of -512 would make the next header this one, for ever."""
    shard = write_tar(tmp_path / "a.tar", [("k", sample(1))], tarfile.USTAR_FORMAT)
    content = bytearray(shard.read_bytes())
    content[124:136] = b"-0000001000\0"
    content[148:156] = b"%06o\0 " % (sum(content[:512]) - sum(content[148:156]) + 8 * 32)
    shard.write_bytes(content)
    with Archive(shard) as archive, pytest.raises(DataError, match=r"no tar file|damaged"):
        list(archive.members())


def test_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Half a million members of one key, an image file of 2 GB of nothing, and pixels by the billion."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(60_000):
            tar.addfile(tarfile.TarInfo(f"k.{number}"))
    with (tmp_path / "b.tar").open("wb") as stream:
        info = tarfile.TarInfo("big.jpg")
        info.size = 2 * 2**30
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        stream.truncate(512 + info.size + 1024)
    write_tar(tmp_path / "c.tar", [("huge", {"png": huge_png(), "txt": b"x"})])
    code = (
        "import sys, resource; from pathlib import Path; from harness.data.quality.check import check_data;"
        "from harness.config.data import WebdatasetData; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"found = check_data(WebdatasetData(shards={str(tmp_path)!r}), Path({str(tmp_path / 'cache')!r}), 1, print);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(found.rejected.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    grown_kib, rejected = map(int, done.stdout.split()[-2:])
    assert grown_kib < 150_000
    assert rejected == 3
