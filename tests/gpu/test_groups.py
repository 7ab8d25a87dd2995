"""Process groups on GPUs, with pretended ones; and that no test uses a GPU without the mark."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from harness.parallel import process_group
from harness.parallel.process_group import LONG_PATIENCE, PATIENCE, ProcessRank, World
from tests import conftest
from tests.gpu.shim import pretended


@pytest.mark.parametrize(("device", "backend"), [("cuda:1", "nccl"), ("cpu", "gloo")])
def test_a_group_is_bound_to_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    """Without `device_id`, NCCL guesses a rank's GPU from its number, and connects only at the first collective."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(process_group, "_store", lambda *_: None)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **how: made.update(name=name, **how))
    monkeypatch.setattr(dist, "new_group", lambda **how: how)
    with pretended(2) as gpu:
        control = process_group._join(ProcessRank(1, 2, 1, 2), tmp_path, torch.device(device))
        assert gpu.current == (1 if backend == "nccl" else 0)
    assert (made["name"], made["rank"], made["world_size"]) == (backend, 1, 2)
    assert made["device_id"] == (torch.device(device) if backend == "nccl" else None)
    assert made["timeout"] == PATIENCE
    assert control == {"backend": "gloo", "timeout": LONG_PATIENCE}


def test_objects_go_through_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are on the CPU, where the default group, NCCL's, has no backend."""
    control: Any = object()
    groups: list[Any] = []
    for name in ("all_reduce", "broadcast_object_list", "all_gather_object"):
        monkeypatch.setattr(dist, name, lambda *_, group=None, **__: groups.append(group))
    world = World(SimpleNamespace(rank=0, size=2), control)  # type: ignore[arg-type]
    world.any_rank(True)
    world.broadcast("a")
    world.all_gather("a")
    assert groups == [control] * 3


@pytest.mark.parametrize(
    ("marks", "hidden"),
    [("", True), ("not slow and not gpu", True), ("slow or browser", True), ("gpu", False), ("slow or gpu", False)],
)
def test_no_test_uses_a_gpu_without_the_mark(monkeypatch: pytest.MonkeyPatch, marks: str, hidden: bool) -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config: Any = SimpleNamespace(option=SimpleNamespace(markexpr=marks))
    conftest.pytest_configure(config)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if hidden else "0,1")
