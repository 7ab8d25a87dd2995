"""The machine's GPUs, cores and shared memory, without importing torch."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

_RANKS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|OMPI|PMI|PMIX|MV2|I_MPI|HYDRA)_.*"
    r"|SLURM_(PROCID|LOCALID|NODEID|NTASKS.*|NPROCS|TASKS_PER_NODE|STEP.*)"
)
"""Variables by which torchrun, srun, MPI or Kubernetes tell a process its rank."""

SHARED_MEMORY = Path("/dev/shm")
"""Where processes pass tensors to each other."""
PREFETCHED = 2
"""Batches that loader workers decode ahead, in shared memory."""

PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A40": 150e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
}
"""Dense half-precision peak of tensor cores, from NVIDIA's data sheets, by a part of the device's name."""

_DEVICES, _DRIVER = Path("/dev"), Path("/proc/driver/nvidia/gpus")


def gpu_count() -> int:
    """Number of NVIDIA GPUs that this process may use, from device files, because the head imports no torch.

    A container has the device files of its own GPUs; what the driver says in /proc is absent in some.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(_DEVICES.glob("nvidia[0-9]*"))) or len(list(_DRIVER.glob("*")))


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what an outer torchrun, srun or mpirun says of ranks, for processes that we start."""
    return {name: value for name, value in environment.items() if not _RANKS.fullmatch(name)}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoded_bytes(images: int, image_size: int) -> int:
    """Shared memory for RGB images that loader workers decode: batches ahead, and the one that is being put together.

    Args:
        images: of a batch that one process trains on; views count.
    """
    return (PREFETCHED + 1) * images * 3 * image_size**2


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int | None:
    """Free bytes of shared memory, or None if this system has no such folder."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None
