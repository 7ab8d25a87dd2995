"""State to go on from: written aside and renamed, loaded without running any code from it."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.errors import CheckpointError
from harness.files import replacing

FORMAT = 1
LEAST_FREE_BYTES = 1 << 20
"""A disk with less than this is full: a write fails before the last bytes are taken."""


@dataclass(frozen=True)
class Progress:
    """Where training stands, besides the state of its modules."""

    step: int
    """Optimiser steps done."""
    duration_s: float
    """Time spent in the loop, over all attempts."""
    attempt: int
    """The attempt that wrote the checkpoint, from 1."""


def save(path: Path, *, run_id: str, progress: Progress, parts: dict[str, Any]) -> None:
    """Write the state of every part (anything with `state_dict`) as one atomic step.

    Raises:
        StoreError: the disk is full or not writable; the previous checkpoint is still there.
    """
    state = {"format": FORMAT, "run_id": run_id, "progress": vars(progress)}
    with replacing(path) as aside:
        _write(state | {name: part.state_dict() for name, part in parts.items()}, aside)


def restore(path: Path, *, run_id: str, parts: dict[str, Any]) -> Progress | None:
    """Put every part back to where the checkpoint at `path` left it; None if there is no checkpoint.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run or another model.
    """
    if not path.exists():
        return None
    state = _read(path)
    if state["run_id"] != run_id:
        fix = "delete it to start over"
        raise CheckpointError(f"belongs to run {state['run_id']}, not {run_id}", where=str(path), fix=fix)
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, RuntimeError, ValueError) as error:
        what = f"does not fit this model ({str(error).splitlines()[0]})"
        raise CheckpointError(what, where=str(path), fix="delete it to start over") from error
    return Progress(**state["progress"])


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state dict alone: `open_clip.create_model(name, pretrained=path)` reads it.

    Raises:
        StoreError: the disk is full or not writable.
    """
    with replacing(path) as aside:
        _write({"state_dict": model.state_dict()}, aside)


def _write(state: dict[str, Any], file: Path) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # how torch puts a write that failed
        full = shutil.disk_usage(file.parent).free < LEAST_FREE_BYTES
        why = os.strerror(errno.ENOSPC) if full else str(error).splitlines()[0]
        raise OSError(errno.ENOSPC if full else errno.EIO, why) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        what = f"is no checkpoint, or a damaged one ({type(error).__name__})"
        raise CheckpointError(what, where=str(path), fix="delete it to start over") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError("is no checkpoint of this version", where=str(path), fix="delete it to start over")
    return state
