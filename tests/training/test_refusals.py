"""What goes wrong in a training stops it before the update, keeps the last good state, and says where."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import worker
from harness.base.errors import DataError, TrainingError
from harness.runs.folder import RunFolder
from harness.training.batches import BatchSource
from harness.training.checkpoint import TrainingProgress
from harness.training.divergence import Spike
from tests.node.small import experiment, planned, prepared
from tests.training.made import VIT_MODEL, attempt, train


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = experiment(model=VIT_MODEL, train=train(6))
    folder = prepared(tmp_path, planned(tmp_path, one)[1])
    taught = BatchSource._batch

    def spoilt(self: BatchSource, step: int, *rest: Any) -> Any:
        batch = taught(self, step, *rest)
        if step == 4:
            monkeypatch.setattr("harness.models.towers.Towers.normalise", lambda _, pixels: pixels.float() * torch.nan)
        return batch

    monkeypatch.setattr(BatchSource, "_batch", spoilt)
    assert worker.main(folder.path) == worker.USER_ERROR
    assert "the loss is not finite at step 5 (terms: " in folder.failure().message
    state = torch.load(folder.checkpoint, weights_only=True)
    assert state["progress"]["step"] == 4
    assert all(torch.isfinite(one).all() for one in state["towers"].values())


def test_a_step_that_failed_has_moved_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer, student = attempt(tmp_path, experiment(train=train()))
    before = {name: one.clone() for name, one in student.towers.state_dict().items()}
    monkeypatch.setattr(student.objective, "forward", lambda pairs: (pairs.image.sum() * torch.inf, {}))
    with pytest.raises(TrainingError, match="the loss is not finite at step 1"):
        next(trainer.run(TrainingProgress(0, 0.0, 1)))
    assert all(torch.equal(one, before[name]) for name, one in student.towers.state_dict().items())


def test_spikes_stand_in_a_file_and_are_dropped_with_the_metrics_behind_a_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (3, 7, 9):
        folder.append_spike(asdict(Spike(step, 9.0, 2.0, [1, 2])))
    with folder.spikes.open("a") as stream:
        stream.write('{"step": 5')
    folder.restore_metrics(7, None)
    assert [json.loads(line)["step"] for line in folder.spikes.read_text().splitlines()] == [3, 7]


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    made, _, student = attempt(tmp_path, experiment(model=VIT_MODEL, train=train()))
    large = experiment(model=VIT_MODEL, train=train() | {"global_batch_size": 128})
    with pytest.raises(DataError, match="the data has 96 samples, fewer than one batch of 128; make the batch smaller"):
        BatchSource(large, made.dataset, student.towers, None)
