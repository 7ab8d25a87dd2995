"""Checkpoints that are written while training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from harness.base.errors import CheckpointError, StoreError
from harness.training import checkpoint
from harness.training.checkpoint import Checkpoints, TrainingProgress, copied, older, remove, restore


def at(step: int) -> TrainingProgress:
    return TrainingProgress(step, float(step), 1)


def test_what_is_written_is_what_was_there_when_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = nn.Linear(3, 3), tmp_path / "checkpoint.pt"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write = checkpoint._write

    def after_training_went_on(state: dict[str, object], to: Path) -> None:
        with torch.no_grad():
            model.weight.fill_(7.0)
        write(state, to)

    monkeypatch.setattr(checkpoint, "_write", after_training_went_on)
    checkpoints = Checkpoints(file, "r", {"model": model})
    checkpoints.save(at(3))
    checkpoints.finish()
    assert (model.weight == 7).all()
    assert restore(file, run_id="r", parts={"model": model}) == at(3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert checkpoints.stood_still_s > 0


def test_a_write_that_failed_is_raised_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, parts = tmp_path / "checkpoint.pt", {"model": nn.Linear(3, 3)}
    checkpoints = Checkpoints(file, "r", parts)
    checkpoints.save(at(1), wait=True)

    def full(state: dict[str, object], to: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    checkpoints.save(at(2))
    with pytest.raises(StoreError, match="cannot be written"):
        checkpoints.finish()
    checkpoints.check()  # it is said once
    assert restore(file, run_id="r", parts=parts) == at(1)


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_asked_for(tmp_path: Path, keep: int) -> None:
    file, parts = tmp_path / "checkpoint.pt", {"model": nn.Linear(3, 3)}
    checkpoints = Checkpoints(file, "r", parts, keep=keep)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(at(step), wait=True)
    assert restore(file, run_id="r", parts=parts) == at(50)
    steps = [restore(one, run_id="r", parts=parts) for one in older(file)]
    assert steps == ([] if keep == 1 else [at(30), at(40), at(50)])
    remove(file)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    Checkpoints(file, "r", {"model": nn.Linear(3, 3)}).save(at(1), wait=True)
    with pytest.raises(CheckpointError, match=r"does not fit this model \(.*delete it to start over"):
        restore(file, run_id="r", parts={"model": nn.Linear(4, 3)})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        restore(file, run_id="r", parts={"model": nn.Linear(3, 3), "average": nn.Linear(3, 3)})


def test_copies_share_nothing() -> None:
    tensor = torch.ones(2)
    state = copied({"a": [tensor, (tensor, 3)], "b": "text"})
    tensor.zero_()
    assert state["a"][0].tolist() == state["a"][1][0].tolist() == [1, 1]
    assert state["b"] == "text"
