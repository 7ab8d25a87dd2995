"""What a run ran on: versions, commit, device, memory."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from importlib.metadata import version

import torch

from harness.base.version import PACKAGE, __version__, built_commit
from harness.losses.chunks import sigmoid_kernel

_PACKAGES = {"torch": "torch", "open_clip": "open_clip_torch", "numpy": "numpy"}


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what can change a number, and the checkout's commit. On a GPU also CUDA's, and what computes the
    sigmoid losses' elementwise part (`triton` or `torch`).
    """
    found = {name: version(package) for name, package in _PACKAGES.items()}
    found |= {"harness": __version__, "python": platform.python_version(), "commit": commit()}
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda or "", "sigmoid_kernel": sigmoid_kernel(device)}
    return found


def commit() -> str:
    """The checkout's commit, marked `-dirty` when files differ from it; `unknown` outside a checkout.

    Of a snapshot (`harness.execute.slurm.snapshot`) and of a wheel: the commit that it was made from.
    """
    origin = PACKAGE.parent / "code.json"
    if origin.is_file():
        return str(json.loads(origin.read_text(encoding="utf-8"))["commit"])
    if (built := built_commit()) is not None:
        return built
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory in use so far, in GB: the GPU's tensors, or the process's resident pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
