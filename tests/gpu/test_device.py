"""What only a GPU can tell: `pytest -m gpu`, which `make gpu` runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.losses.chunks import sigmoid_kernel
from tests.gpu.test_right import SIGMOID, as_before, made
from tests.training.made import FFF

__all__ = ["as_before"]
pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    """The last GPU of this machine, while the first is the current one."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    torch.cuda.set_device(0)
    return torch.device("cuda", torch.cuda.device_count() - 1)


def test_the_kernel_runs(device: torch.device) -> None:
    assert sigmoid_kernel(device) == "triton", "install a C compiler: the plain version takes several times as long"


def test_a_deterministic_run_on_its_own_gpu(tmp_path: Path, device: torch.device) -> None:
    weights = []
    for name in ("a", "b"):
        resources = {"deterministic": True, "log_every": 1}
        attempt = made(tmp_path / name, gpu=device.index, **{**FFF, **SIGMOID}, resources=resources)
        assert attempt.device == device
        assert torch.cuda.current_device() == device.index
        assert attempt.train()
        attempt.evaluate()
        weights.append(attempt.towers.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
