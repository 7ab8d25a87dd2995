from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import DataError
from harness.data.sources.patterns import braces, expand


@given(st.integers(0, 999), st.integers(0, 50))
def test_a_range_counts_up_with_the_width_of_its_first_number(first: int, more: int) -> None:
    names = braces(f"a{{{first:04d}..{first + more:04d}}}.tar")
    assert names == [f"a{number:04d}.tar" for number in range(first, first + more + 1)]


def test_alternatives_multiply_in_the_order_written() -> None:
    assert braces("{b,a}/{8..10}.tar") == [f"{x}/{n}.tar" for x in "ba" for n in (8, 9, 10)]


def test_webdatasets_own_expansion_agrees() -> None:
    from braceexpand import braceexpand

    for pattern in ("x{00000..00012}.tar", "{train,more}/{0..3}.tar", "plain.tar"):
        assert braces(pattern) == list(braceexpand(pattern))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("00001.tar", "00000.tar", "00010.tar", "notes.txt", "odd[1].tar"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_folder_a_glob_and_braces_name_files_in_order(folder: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [path.name for path in expand(f"{folder}/{pattern}")]

    assert names("") == ["00000.tar", "00001.tar", "00010.tar", "odd[1].tar"]
    assert names("0000?.tar") == ["00000.tar", "00001.tar"]
    assert names("{00000..00001}.tar") == ["00000.tar", "00001.tar"]
    assert names("{00001,00000,0000?}.tar") == ["00001.tar", "00000.tar"]
    assert names("odd[1].tar") == ["odd[1].tar"]


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("{00000..00002}.tar", "00002.tar: shard is missing"),
        ("*.tgz", "matches no file"),
        ("none.tar", "shard is missing"),
        ("{5..1}.tar", "is not a range of shards"),
        ("{1..99999999}.tar", "is not a range of shards"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, pattern: str, what: str) -> None:
    with pytest.raises(DataError, match=what.replace(".", r"\.")):
        expand(f"{folder}/{pattern}")


def test_a_url_is_refused() -> None:
    with pytest.raises(DataError, match="not on a file system"):
        expand("s3://bucket/{000..009}.tar")
