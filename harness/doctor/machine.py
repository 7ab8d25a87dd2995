"""Cores, memory, GPUs and SLURM of this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.base.machine import SHARED_MEMORY, decoded_bytes, free_shared_memory
from harness.doctor.finding import Finding, answer

_GPUS = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
_TORCH = "import torch; print(torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_SLURM = ("sbatch", "squeue", "sacct", "scancel")


def processor(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> Finding:
    """Cores and memory that runs may use."""
    cores, memory_gb = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 1e9
    found = f"{cores} cores, {memory_gb:.0f} GB of memory"
    if (allowed := _quota(quota)) is not None and allowed < cores:
        remedy = f"give `--jobs {max(int(allowed), 1)}`: more workers slow each other down"
        return Finding("warning", "processor", f"{found}, but this container may use {allowed:g} cores", remedy)
    if memory_gb < 4:
        return Finding("warning", "processor", f"{found}: a run takes 1 to 2 GB", "give `--jobs 1`")
    return Finding("ok", "processor", found)


def shared_memory(folder: Path = SHARED_MEMORY, least_images: int = 1024) -> Iterator[Finding]:
    """Loader workers pass images through shared memory; a container's default of 64 MB is soon full."""
    if (free := free_shared_memory(folder)) is None:
        return
    images = free // decoded_bytes(1, 224)
    found = f"{folder} has {free / 1e9:.2f} GB free: loader workers can decode batches of {images:,} images of 224 px"
    if images < least_images:
        remedy = "start the container with --shm-size=8g, or set resources.loader_workers to 0 for larger batches"
        yield Finding("warning", "shared memory", found, remedy)
    else:
        yield Finding("ok", "shared memory", found)


def gpu() -> Finding:
    """GPUs of the driver, and whether torch can use them (checked in a separate process)."""
    if shutil.which("nvidia-smi") is None:
        return Finding("ok", "GPU", "no NVIDIA driver: runs use the CPU")
    status, text = answer(_GPUS, timeout_s=10)
    if status != 0 or not text:
        return Finding("warning", "GPU", f"nvidia-smi fails ({text})", "repair the driver; until then runs use the CPU")
    gpus = [line.strip() for line in text.splitlines()]
    status, text = answer([sys.executable, "-c", _TORCH], timeout_s=60)
    words = text.split()
    if status != 0 or len(words) != 2:
        last = text.splitlines()[-1] if text else "no answer"
        return Finding("error", "GPU", f"torch cannot be imported ({last})", "install the locked requirements")
    if int(words[1]) == 0:
        what = "has no CUDA" if words[0] == "None" else f"for CUDA {words[0]} does not work with this driver"
        remedy = "install a torch and torchvision for the driver's CUDA; until then runs use the CPU"
        return Finding("warning", "GPU", f"{'; '.join(gpus)}: but the installed torch {what}", remedy)
    return Finding("ok", "GPU", f"{'; '.join(gpus)}; torch uses {words[1]} with CUDA {words[0]}")


def slurm() -> Finding:
    """SLURM's commands, its controller, and its accounting."""
    lacking = [name for name in _SLURM if shutil.which(name) is None]
    if len(lacking) == len(_SLURM):
        return Finding("ok", "SLURM", "not on this machine: runs execute locally")
    if lacking:
        return Finding("error", "SLURM", f"{', '.join(lacking)} not found", "install SLURM's client commands")
    status, text = answer(["squeue", "--noheader", "--me", "--format=%i"], timeout_s=10)
    if status != 0:
        return Finding("error", "SLURM", f"the controller does not answer ({text})", "ask the cluster's administrators")
    status, text = answer(["sacct", "--noheader", "--allocations", "--format=JobID"], timeout_s=10)
    if status != 0:
        remedy = "sweeps work without accounting; the causes of failures are less precise"
        return Finding("warning", "SLURM", f"sacct fails ({text})", remedy)
    return Finding("ok", "SLURM", "commands, controller and accounting answer")


def _quota(file: Path) -> float | None:
    """Cores that a cgroup (version 2) allows, or None for no limit."""
    try:
        limit, period = file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
