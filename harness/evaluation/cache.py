"""Features kept on disk: another protocol, or a set measured again, costs no pass through the towers.

A file's name is a digest of everything that its numbers depend on, so that none can go stale, and the folder is
bounded: what was not asked for the longest goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.base.errors import StoreError
from harness.base.files import replacing
from harness.runs.identity import digest

LIMIT_BYTES = 4 * 2**30
_NAME_LENGTH = 32


class FeatureCache:
    """Features of one model. Several processes may share the folder."""

    def __init__(self, folder: Path, owner: str, limit_bytes: int = LIMIT_BYTES) -> None:
        """`owner` names the model's weights and everything else that all its features depend on."""
        self._folder, self._owner, self._limit = folder, owner, limit_bytes

    def get(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """The features called `what`, from disk or from `compute`; float32. A full disk only means no cache."""
        file = self._folder / f"{digest([self._owner, what], _NAME_LENGTH)}.npy"
        found = _read(file)
        if found is None:
            found = compute()
            with contextlib.suppress(StoreError, OSError):
                self._write(file, found)
        return found

    def _write(self, file: Path, features: Tensor) -> None:
        with replacing(file) as aside, aside.open("wb") as stream:
            np.save(stream, features.cpu().numpy(), allow_pickle=False)
        known = sorted((one.stat().st_mtime, one.stat().st_size, one) for one in self._folder.glob("*.npy"))
        total = sum(size for _, size, _ in known)
        for _, size, oldest in known:
            if total <= self._limit:
                return
            oldest.unlink(missing_ok=True)
            total -= size


def weights_digest(module: nn.Module) -> str:
    """A digest of a module's parameters and buffers, names and values."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _read(file: Path) -> Tensor | None:
    try:
        features = np.load(file, allow_pickle=False)
        os.utime(file)  # asked for now: the last to go
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(features)
