"""The device that is measured, its clock and its memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.config.model import Model
from harness.config.resources import Resources
from harness.models.fitting import choose_device
from harness.training.provenance import device_name

SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: torch.device
    smoke: bool
    folder: Path
    """Scratch space."""

    @classmethod
    def here(cls, folder: Path, *, smoke: bool) -> Bench:
        """The GPU of this machine; the CPU for a smoke test.

        Raises:
            NotHereError: there is no GPU.
        """
        return cls(choose_device(Resources(device="cpu" if smoke else "cuda"), 0), smoke, folder)

    @property
    def is_cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.type == "cuda"

    @property
    def machine(self) -> str:
        """What stands beside each figure."""
        return f"{device_name(self.device)}, torch {torch.__version__}"

    @property
    def model(self) -> Model:
        """The towers that are timed."""
        return Model(name="small", config=SMALL) if self.smoke else Model(name="ViT-B-16")

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Free what is not held any more, and begin to watch memory."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Largest memory of tensors since `forget`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.is_cuda else 0.0

    def seconds(self, work: Callable[[], object], times: int, warm: int = 2) -> float:
        """Median of the wall time of `work`."""
        found = []
        for number in range(1 if self.smoke else warm + times):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            if self.smoke or number >= warm:
                found.append(time.perf_counter() - begun)
        return statistics.median(found)
