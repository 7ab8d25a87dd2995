"""The machine's GPUs and cores, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path


def gpu_count() -> int:
    """Number of NVIDIA GPUs that this process may use, from the driver's files, because the head imports no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
