"""Atomic writes: whatever happens to the writer, a reader sees the old file or the new one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base.errors import StoreError
from harness.base.files import read_json, replacing, write_json, write_text
from harness.base.locks import exclusive
from harness.runs.folder import RunFolder
from tests.head.made import ablation, is_one_sentence, plan_of, record

WRITER = """
import sys
from pathlib import Path
from harness.base.files import write_json
number = 0
while True:
    number += 1
    write_json(Path(sys.argv[1]), {"number": number, "padding": [number] * 20_000})
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_write_and_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.json"
    write_json(file, {"b": [1, None, "ä"], "a": 1.5})
    assert read_json(file) == {"a": 1.5, "b": [1, None, "ä"]}
    assert file.stat().st_mode & 0o777 == 0o644
    assert names(file.parent) == {"a.json"}


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float"):
            write_json(file, {"a": bad})

    def torn() -> None:
        with replacing(file) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert read_json(file) == {"a": 1}
    assert names(tmp_path) == {"a.json"}


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with replacing(file) as aside:
        aside.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a folder")
    with pytest.raises(StoreError, match=r"cannot be written \(.*\); free space or correct the permissions") as caught:
        write_json(tmp_path / "a" / "b.json", {})
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1} x'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot be read .*; restore it, or move it away") as caught:
        read_json(file)
    assert is_one_sentence(caught.value)


def test_killed_writers_leave_whole_files(tmp_path: Path) -> None:
    """kill -9 at random moments; a torn file would be no JSON, or its padding would not fit its number."""
    file, seen = tmp_path / "a.json", set()
    rng = random.Random(0)
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)])
        before, deadline = file.stat().st_mtime_ns if file.exists() else 0, time.monotonic() + 60
        while not (file.exists() and file.stat().st_mtime_ns > before) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        writer.kill()
        writer.wait()
        data = json.loads(file.read_text())
        assert data["padding"] == [data["number"]] * 20_000
        seen.add(data["number"])
    assert len(seen) > 1


def test_a_lock_is_released_by_kill(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from harness.base.locks import exclusive\n"
    code += "with exclusive(Path(sys.argv[1]), wait=True): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with exclusive(tmp_path / "lock", wait=False) as held:
        assert not held
    holder.kill()
    holder.communicate()
    with exclusive(tmp_path / "lock", wait=False) as held:
        assert held


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    file = small_disk / "a.json"
    write_json(file, {"a": "old"})
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); free space") as caught:
        write_json(file, {"a": "x" * 100_000})
    assert is_one_sentence(caught.value)
    assert read_json(file) == {"a": "old"}
    assert names(small_disk) == {"a.json"}


def fill(folder: RunFolder) -> None:
    for step in range(2, 200):
        folder.append_metrics(step, {f"term {number}": 1 / 3 for number in range(20)})


def test_a_run_on_a_full_disk(small_disk: Path) -> None:
    (run,) = plan_of(ablation({"plain": {}}, seeds=1)).runs.values()
    folder = RunFolder(small_disk / "runs" / run.id)
    folder.prepare(run.identity, {"small": True})
    with folder.claimed():
        folder.append_metrics(1, {"loss": 1.0})
        before = {file.name: file.read_bytes() for file in folder.path.iterdir() if file.is_file()}
        (small_disk / "rest").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        with pytest.raises(StoreError, match="No space left on device"):
            folder.finish(record(run.id))
        with pytest.raises(StoreError, match="No space left on device"):
            folder.prepare(run.identity, {"small": False})
        with pytest.raises(StoreError, match="No space left on device") as caught:
            fill(folder)
        assert is_one_sentence(caught.value)
        (small_disk / "rest").unlink()
        assert {name: (folder.path / name).read_bytes() for name in before if name != "metrics.jsonl"} == {
            name: content for name, content in before.items() if name != "metrics.jsonl"
        }
        assert folder.step_metrics()[0].values == {"loss": 1.0}
        folder.restore_metrics(1, None)
        folder.finish(record(run.id))
    assert folder.record().run_id == run.id
    assert [line.step for line in folder.step_metrics()] == [1]


def test_a_lock_holds_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / "lock").touch()
    (small_disk / "rest").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with exclusive(small_disk / "lock", wait=False) as held:
        assert held
        with exclusive(small_disk / "lock", wait=False) as again:
            assert not again
