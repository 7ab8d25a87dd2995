"""A disk that is full when a checkpoint is written: one sentence, and the last checkpoint is still good."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import worker
from harness.base.errors import StoreError
from harness.node.stop import Stop
from harness.runs.folder import RunFolder
from harness.training import checkpoint
from harness.training.checkpoint import Checkpoints, TrainingProgress
from tests.node.small import experiment, planned, prepared


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a file system")
    yield disk
    gc.collect()  # an error that a checkpoint's thread has left holds the open file
    subprocess.run(["umount", str(disk)], check=True)


def test_the_last_checkpoint_is_still_good(small_disk: Path) -> None:
    small, file = nn.Linear(50, 50), small_disk / "checkpoint.pt"
    Checkpoints(file, "r", {"model": small}).save(TrainingProgress(3, 1.0, 1), wait=True)
    before = small.weight.detach().clone()
    expected = r"checkpoint.pt: cannot be written \(No space left on device\); free space or correct the permissions$"
    with pytest.raises(StoreError, match=expected):
        Checkpoints(file, "r", {"model": nn.Linear(500, 500)}).save(TrainingProgress(4, 2.0, 1), wait=True)
    with torch.no_grad():
        small.weight.zero_()
    found = checkpoint.restore(file, run_id="r", parts={"model": small})
    assert found == TrainingProgress(3, 1.0, 1)
    assert torch.equal(small.weight, before)
    assert [left.name for left in small_disk.iterdir()] == ["checkpoint.pt"]


def test_weights_that_find_no_room(small_disk: Path) -> None:
    with pytest.raises(StoreError, match=r"weights.pt: cannot be written \(No space left on device\)"):
        checkpoint.save_weights(small_disk / "weights.pt", nn.Linear(500, 500))
    assert list(small_disk.iterdir()) == []


def test_a_worker_says_it_by_its_exit_status(
    tmp_path: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a full disk no file can say why the run has ended."""
    folder = prepared(tmp_path, planned(tmp_path, experiment(teacher=None))[1])
    shutil.copytree(folder.path, small_disk / folder.id)
    assert worker.main(small_disk / folder.id, Stop()) == worker.DISK_FULL
    assert "No space left on device" in capfd.readouterr().err
    assert not RunFolder(small_disk / folder.id).failure_file.exists(), "it is no fault of the run's"
