"""Features kept on disk: another protocol, or a set measured again, costs no pass through the towers.

A file's name is a digest of everything that its numbers depend on, so that none can go stale. Its last 32 bytes are the
SHA-256 of its name and of the rest: a file that is damaged, or that older code wrote without a digest, is computed
again. The folder is bounded: what was not asked for the longest goes first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.base.errors import StoreError
from harness.base.log import say
from harness.evaluation.kept_arrays import read_arrays, write_array
from harness.runs.identity import digest

LIMIT_BYTES = 4 * 2**30
_NAME_LENGTH = 32


class FeatureCache:
    """Features of one model. Several processes may share the folder."""

    def __init__(self, folder: Path, owner: str, limit_bytes: int = LIMIT_BYTES) -> None:
        """`owner` names the model's weights and everything else that all its features depend on."""
        self._folder, self._owner, self._limit = folder, owner, limit_bytes

    def get(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """The features called `what`, from disk or from `compute`; float32."""
        file = self.file(what)
        found = _read(file)
        if found is None:
            if os.path.lexists(file):
                say(f"{file} is damaged, or of an earlier version: its features are computed again")
            found = compute()
            try:
                self._write(file, found)
            except (StoreError, OSError) as error:  # a full disk only means no cache
                say(f"features are not kept, and are computed again next time: {error}")
        return found

    def file(self, what: str) -> Path:
        """Where the features called `what` are kept."""
        return self._folder / f"{digest([self._owner, what], _NAME_LENGTH)}.npy"

    def _write(self, file: Path, features: Tensor) -> None:
        write_array(file, features.cpu().numpy())
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
        return torch.from_numpy(read_arrays(file))
    except (OSError, ValueError, EOFError, TypeError):  # missing, or damaged in any way
        return None
