"""What costs time on a GPU, on a pretended one: waits of the host, copies, decoding in the training process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data.dataset import loader
from harness.evaluation.towers import undisturbed
from harness.training import checkpoint
from harness.training.checkpoint import TrainingProgress
from harness.training.precision import Precision
from tests.gpu.shim import pretended
from tests.gpu.test_right import as_before, made
from tests.training.made import FFF

CUDA = torch.device("cuda:0")
__all__ = ["as_before"]


@pytest.mark.parametrize(("fields", "most"), [({}, 4), (FFF, 8)], ids=["clip", "mined"])
def test_waits_of_a_step(tmp_path: Path, fields: dict[str, Any], most: int) -> None:
    """Of data whose truth is not known; scoring mined pairs against the truth takes one wait more."""
    with pretended() as gpu:
        attempt = made(tmp_path, **fields)
        attempt.dataset.__dict__["truth"] = None
        trainer, _ = attempt.build()
        trainer.calibrate()
        for step in trainer.run(TrainingProgress(0, 0.0, 1)):
            waits = dict(gpu.waits)
            gpu.waits.clear()
            if step.at.step > 1:
                assert sum(waits.values()) <= most, waits


def test_teacher_features_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[int, ...]] = []
    with pretended() as gpu:
        trainer, _ = made(tmp_path, **FFF).build()
        moved = gpu.moved

        def counted(tensor: Tensor, device: torch.device, *args: Any) -> Tensor:
            if tensor.dim() == 2 and tensor.is_floating_point() and gpu.device_of(tensor) != device:
                copies.append(tuple(tensor.shape))
            return moved(tensor, device, *args)

        trainer.calibrate()
        monkeypatch.setattr(gpu, "moved", counted)
        next(trainer.run(TrainingProgress(0, 0.0, 1)))
    assert len(copies) == 2, copies


def test_a_checkpoint_is_one_copy() -> None:
    with pretended() as gpu:
        one = torch.arange(4.0).to("cuda")
        state: Any = {"a": [one, torch.ones(2, 3).to("cuda")], "b": (torch.zeros(2, dtype=torch.int64).to("cuda"),)}
        state |= {"c": torch.ones(1), "step": 3}
        gpu.waits.clear()
        copied = checkpoint.copied(state)
        assert gpu.wait_count == 1, gpu.waits
        one += 1
    assert torch.equal(copied["a"][0], torch.arange(4.0))
    assert torch.equal(copied["a"][1], torch.ones(2, 3))
    assert copied["b"][0].dtype == torch.int64
    assert copied["step"] == 3


def test_the_loader_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(2):
        monkeypatch.setattr(loader, "cores", lambda: 12)
        attempt = made(tmp_path)
        assert attempt.build()[0]._source._images.workers == 0  # all images fit into memory
        monkeypatch.setattr(loader, "KEPT_BYTES", 0)
        images = attempt.build()[0]._source._images
        assert images.workers == 5
        images.workers = 0
        assert next(images(iter([(0, torch.arange(4).numpy())]))).is_pinned()
    assert made(tmp_path, resources={"device": "cpu"}).build()[0]._source._images.workers == 0


def test_tf32_is_only_what_was_asked_for() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        Precision("tf32", CUDA)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        with undisturbed(torch.nn.Linear(1, 1), torch.device("cpu")):  # type: ignore[arg-type]
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
        assert torch.backends.cudnn.allow_tf32
        Precision("float32", CUDA)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
