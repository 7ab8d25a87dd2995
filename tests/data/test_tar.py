from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.base.errors import DataError
from harness.data.sources.tar import Archive, Member

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join).filter(lambda name: name.strip("./ "))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def members(path: Path) -> list[Member]:
    with Archive(path) as archive:
        return list(archive.members())


def written(path: Path, form: int, files: list[tuple[str, bytes]], mtime: float = 0) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("a folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.tuples(PATHS, st.binary(max_size=9000)), max_size=6), form=FORMATS, mtime=st.floats(0, 2e9))
def test_members_are_those_that_tarfile_reads(
    tmp_path: Path, files: list[tuple[str, bytes]], form: int, mtime: float
) -> None:
    if form == tarfile.USTAR_FORMAT:
        files = [(name, content) for name, content in files if name.isascii() and len(name) <= 100]
    path = written(tmp_path / "x.tar", form, files, mtime)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    found = members(path)
    assert [(member.name.rstrip("/"), member.offset, member.size) for member in found] == expected
    content = path.read_bytes()
    for member in found:
        whole = content[member.offset : member.offset + member.size]
        assert member.head == whole[:4096]


def test_a_member_of_more_than_8_gib_is_stated_in_base_256_and_found_truncated(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.jpg")
    info.size = 9 * 2**30
    path = tmp_path / "huge.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    with pytest.raises(DataError, match=r"huge.tar: is truncated inside 'huge.jpg'"):
        members(path)


def test_every_truncation_is_refused_unless_only_the_end_mark_is_lost(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.tar", tarfile.USTAR_FORMAT, [("a.jpg", b"x" * 700), ("b.txt", b"y" * 10)])
    content = whole.read_bytes()
    cut = tmp_path / "cut.tar"
    end_mark = 512 + (512 + 1024) + (512 + 512) + 512 + 512
    for length in range(0, len(content), 50):
        cut.write_bytes(content[:length])
        if length >= end_mark:
            assert [member.name for member in members(cut)] == ["a.jpg", "b.txt"]
        else:
            with pytest.raises(DataError, match=r"cut.tar: is (truncated|no tar|damaged)"):
                members(cut)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<html>404 not found</html>" * 100, "is no tar file"),
        (gzip.compress(bytes(5000), mtime=0), "is compressed; unpack it"),
        (bz2.compress(bytes(5000)), "is compressed; unpack it"),
        (lzma.compress(bytes(5000)), "is compressed; unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed; unpack it"),
        (b"short", "is no tar file"),
    ],
)
def test_what_is_no_tar_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "00000.tar"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        members(path)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_header_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tarfile.USTAR_FORMAT, [("a.jpg", b"x" * 600), ("b.jpg", b"x")])
    content = bytearray(path.read_bytes())
    second = content.index(b"b.jpg")
    content[second] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        members(path)


def test_a_header_that_was_overwritten_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tarfile.USTAR_FORMAT, [("a.jpg", b"x" * 600), ("b.jpg", b"x"), ("c.jpg", b"x")])
    content = bytearray(path.read_bytes())
    second = content.index(b"b.jpg")
    content[second : second + 512] = b"\xff" * 512
    path.write_bytes(content)
    with Archive(path) as archive:
        found = archive.members()
        assert next(found).name == "a.jpg"
        with pytest.raises(DataError, match=rf"is damaged at byte {second}"):
            next(found)


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    assert members(written(tmp_path / "x.tar", tarfile.USTAR_FORMAT, [])) == []
    (tmp_path / "y.tar").write_bytes(bytes(10240))
    assert members(tmp_path / "y.tar") == []


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.tar: cannot be opened"):
        members(tmp_path / "gone.tar")


@pytest.mark.skipif(
    sys.version_info < (3, 11, 10) or (3, 12) <= sys.version_info < (3, 12, 6),
    reason="this Python's tarfile skips pax headers that it cannot read (CVE-2024-6232)",
)
def test_a_damaged_pax_header_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar", tarfile.PAX_FORMAT, [("ä" * 60, b"x")])
    content = bytearray(path.read_bytes())
    content[content.index(b" path=") - 1] = ord("z")
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        members(path)
