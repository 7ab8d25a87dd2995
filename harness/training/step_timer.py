"""Where a step's time goes. A run is not slowed down by it: only `harness profile` reads the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

StepTimer = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a part of a step; what runs in the context is counted to it."""


def no_timer(_part: str) -> AbstractContextManager[None]:
    """Counts nothing."""
    return nullcontext()


class PartsTimer:
    """Adds up the wall time of each part; on a GPU it waits for the device at both ends of a part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what runs in the context to `part`."""
        begun = self._now()
        try:
            with torch.profiler.record_function(part):
                yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + self._now() - begun

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
