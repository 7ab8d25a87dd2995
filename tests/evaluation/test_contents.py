"""What a set contains is kept by the state of its files: no change passes, and nothing is read twice without need."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.evaluation import sets
from harness.evaluation.contents import SETTLED_S, contents_at
from harness.evaluation.sets import EvaluationSet, read_set
from tests.damages import DAMAGES
from tests.evaluation.worlds import classification_set


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sets that were read."""
    found: list[Path] = []

    def read(path: Path, *arguments: str) -> EvaluationSet:
        found.append(path)
        return read_set(path, *arguments)

    monkeypatch.setattr(sets, "read_set", read)
    return found


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have been left alone for long: the clock of the process is ahead of the file system's."""
    now = time.time
    monkeypatch.setattr("harness.evaluation.contents.time.time", lambda: now() + 2 * SETTLED_S)


def digest(path: Path, store: Path) -> str:
    return contents_at(path, path.name, "test", store).samples.sha256


def edited(file: Path, *, keep_times: bool = True) -> None:
    """Change one bit of a file's last image: its size, inode and modification time stay."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    place = content.rindex(b"IEND") - 20
    content[place] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)
    if keep_times:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_ino) == (status.st_size, status.st_ino)
    assert (after.st_mtime_ns == status.st_mtime_ns) == keep_times


@pytest.mark.usefixtures("later")
def test_a_set_is_read_once_and_again_where_anything_changed(tmp_path: Path, reads: list[Path]) -> None:
    path, store = classification_set(tmp_path / "things"), tmp_path / "store"
    first = digest(path, store)
    assert first == read_set(path).digest
    assert digest(path, store) == first
    assert len(reads) == 1
    edited(path / "test" / "1.tar")
    second = digest(path, store)
    assert second not in (first, "")
    assert second == read_set(path).digest
    assert len(reads) == 2
    digest(path, store)
    assert len(reads) == 2


@pytest.mark.usefixtures("later")
def test_a_file_put_in_the_place_of_another_is_seen(tmp_path: Path, reads: list[Path]) -> None:
    path, store = classification_set(tmp_path / "things"), tmp_path / "store"
    first, shard = digest(path, store), path / "test" / "1.tar"
    status, other = shard.stat(), tmp_path / "other.tar"
    other.write_bytes(shard.read_bytes())
    edited(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(shard)
    assert digest(path, store) != first
    assert len(reads) == 2


def test_files_that_have_just_changed_are_read_each_time(tmp_path: Path, reads: list[Path]) -> None:
    """Within a tick of the file system's clock an edit leaves the same times; so nothing is kept yet."""
    path, store = classification_set(tmp_path / "things"), tmp_path / "store"
    for expected in (1, 2):
        digest(path, store)
        assert len(reads) == expected
    assert not store.exists()


@pytest.mark.usefixtures("later")
def test_what_is_kept_is_not_trusted_where_it_is_damaged(
    tmp_path: Path, reads: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = classification_set(tmp_path / "things"), tmp_path / "store"
    first = digest(path, store)
    (file,) = store.iterdir()
    for text in ("", "[]", "{}", '{"files": [], "count": 1, "sha256": "x"}'):
        file.write_text(text)
        assert digest(path, store) == first
    assert len(reads) == 5
    for damage in DAMAGES.values():
        damage(file)
        assert digest(path, store) == first
    assert len(reads) == 5 + len(DAMAGES)
    assert capsys.readouterr().err.count(f"{file} is damaged") == 4 + len(DAMAGES) - 1  # one was gone


def test_the_times_of_a_status_change_cannot_be_set_back(tmp_path: Path) -> None:
    """The assumption that everything here rests on, on the file system of the tests."""
    file = tmp_path / "file"
    file.write_bytes(b"a")
    before = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ctime_ns > before.st_ctime_ns
