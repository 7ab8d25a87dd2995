"""What this machine has, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use; asked of the driver's files, as the head does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
