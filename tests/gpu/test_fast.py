"""What costs time on a GPU, on a pretended one: waits of the host, copies, decoding in the training process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.base.errors import DataError, TrainingError
from harness.config.evaluation import Evaluation
from harness.config.evaluation import Precision as EvaluationPrecision
from harness.data.dataset import loader
from harness.evaluation import towers
from harness.evaluation.conditions import known_conditions
from harness.evaluation.towers import SetEncoder, undisturbed
from harness.training import checkpoint
from harness.training.checkpoint import TrainingProgress
from harness.training.precision import Precision
from tests.gpu.shim import pretended
from tests.gpu.test_right import Enough, as_before, made
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


def test_batches_that_do_not_fit_into_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches that workers decode ahead and the one being put together, 16 images of 32 px each."""
    needed = 3 * 16 * 3 * 32**2
    for workers, free, fits in ((2, needed, True), (2, needed - 1, False), (0, 0, True), (2, None, True)):
        monkeypatch.setattr(loader, "free_shared_memory", lambda free=free: free)
        attempt = made(tmp_path, resources={"device": "cpu", "loader_workers": workers})
        if fits:
            attempt.build()
        else:
            with pytest.raises(DataError, match="of shared memory for batches of 16 images") as error:
                attempt.build()
            assert error.value.where == "/dev/shm"
            assert "resources.loader_workers" in (error.value.fix or "")


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


def test_evaluation_copies_while_the_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is decoded and sent before the host waits for the one before it; no copy is waited for."""
    events: list[str] = []
    require = towers._require

    def batches() -> Any:
        for number in range(3):
            events.append(f"decoded {number}")
            yield torch.ones(2, 3)

    def required(finite: Tensor, tower: str) -> None:
        events.append("waited")
        require(finite, tower)

    monkeypatch.setattr(towers, "_require", required)
    model = torch.nn.Linear(3, 3)
    with pretended() as gpu:
        encoder = SetEncoder(model, batch_size=2, device=CUDA)  # type: ignore[arg-type]
        found = encoder._features(lambda batch: batch * 2, batches(), "image")
        assert gpu.wait_count == 3, gpu.waits
        assert all(one.device == CUDA for one in found)
    assert events == ["decoded 0", "decoded 1", "waited", "decoded 2", "waited", "waited"]
    assert encoder.encoded["image"] == 6


@pytest.mark.parametrize("last", [0, 1, 2])
def test_no_batch_with_a_nan_is_missed(last: int) -> None:
    batches = [torch.full((2, 3), torch.nan if number == last else 1.0) for number in range(3)]
    encoder = SetEncoder(torch.nn.Linear(3, 3), batch_size=2, device=torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="image features are not finite"):
        encoder._features(lambda batch: batch, batches, "image")


def _arithmetic() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("float32", "cuda:0", ("highest", False)),
        ("bfloat16", "cuda:0", ("highest", False)),
        ("tf32", "cuda:0", ("high", True)),
        ("tf32", "cpu", ("highest", False)),
    ],
)
def test_evaluation_in_tf32_is_that_of_the_towers_alone(
    precision: EvaluationPrecision, device: str, expected: tuple[str, bool]
) -> None:
    """Scores and metrics stay float32; so does what comes after a tower that fails."""
    seen: list[tuple[str, bool]] = []

    def encode(batch: Tensor) -> Tensor:
        seen.append(_arithmetic())
        if len(seen) == 2:
            raise Enough
        return batch

    model: Any = torch.nn.Linear(3, 3)
    with pretended(), undisturbed(model, torch.device("cpu")):
        encoder = SetEncoder(model, batch_size=2, device=torch.device(device), precision=precision)
        encoder._features(encode, [torch.ones(2, 3)], "image")
        assert _arithmetic() == ("highest", False)
        with pytest.raises(Enough):
            encoder._features(encode, [torch.ones(2, 3)], "image")
        assert _arithmetic() == ("highest", False)
    assert seen == [expected] * 2


def test_tf32_has_a_protocol_of_its_own() -> None:
    found = [known_conditions("zeroshot_retrieval", Evaluation(precision=name)) for name in ("float32", "tf32")]
    assert found[0] != found[1]
