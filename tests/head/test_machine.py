"""What is found out about a machine without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base import machine


@pytest.mark.parametrize(
    ("devices", "driver", "visible", "count"),
    [
        ((), (), None, 0),
        (("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"), (), None, 2),  # a container
        (("nvidia3",), ("0000:01:00.0", "0000:02:00.0"), None, 1),  # a container with one GPU of two
        ((), ("0000:01:00.0", "0000:02:00.0"), None, 2),
        (("nvidia0", "nvidia1"), (), "1", 1),
        (("nvidia0", "nvidia1"), (), "", 0),
        (("nvidia0",), (), "-1", 0),
        ((), (), "GPU-a,GPU-b", 2),
    ],
)
def test_gpus_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: tuple[str, ...],
    driver: tuple[str, ...],
    visible: str | None,
    count: int,
) -> None:
    for folder, names in (("dev", devices), ("driver", driver)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    monkeypatch.setattr(machine, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "driver")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu_count() == count
