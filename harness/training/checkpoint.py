"""State to go on from: copied in an instant, written beside the training, loaded without running any code from it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from harness.base.boundary import as_sentence
from harness.base.errors import CheckpointError
from harness.base.files import open_plain, replacing
from harness.base.log import say

FORMAT = 2
LEAST_FREE_BYTES = 1 << 20
"""A disk with less than this is full: a write fails before the last bytes are taken."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands, besides the state of its modules."""

    step: int
    """Optimiser steps done."""
    duration_s: float
    """Time spent in the loop, over all attempts."""
    attempt: int
    """The attempt that wrote the checkpoint, from 1."""


class DamagedCheckpointError(CheckpointError):
    """A file is no checkpoint, or a damaged one."""


class Checkpoints:
    """The checkpoints of a run that trains here: written in a thread, from a copy, while training goes on.

    Raises:
        StoreError: by any call after a write that failed; the previous checkpoint is still there.
    """

    def __init__(self, path: Path, run_id: str, parts: Mapping[str, Any], *, keep: int = 1) -> None:
        self._path, self._run_id, self._parts, self._keep = path, run_id, parts, keep
        self._writing: threading.Thread | None = None
        self._failed: BaseException | None = None
        self.log: str | None = None
        """Lines of the training's metrics that the restored checkpoint has; None in those of earlier versions."""
        self.stood_still_s = 0.0
        """How long training waited for its checkpoints, in all."""

    def restore(self) -> TrainingProgress | None:
        """Like the function of that name. If the newest checkpoint is damaged, an older one beside it is used.

        Raises:
            CheckpointError: all are damaged; or one belongs to another run or another model.
        """
        files, problems = [self._path, *reversed(older(self._path))], list[CheckpointError]()
        for file in filter(Path.exists, files):
            try:
                state = _restored(file, self._run_id, self._parts)
            except DamagedCheckpointError as error:
                problems.append(error)
                continue
            if problems:
                say(f"{problems[0].where} is damaged: training resumes from {file.name}")
            self.log = state.get("log")
            return TrainingProgress(**state["progress"])
        if problems:
            raise problems[0]
        return None

    def save(self, progress: TrainingProgress, *, log: str = "", wait: bool = False) -> None:
        """Take a checkpoint of the parts as they are now; with `wait`, return when it is on the disk.

        Args:
            log: the lines of the training's metrics so far.
        """
        begun = time.monotonic()
        self.finish()
        state = copied(_state(self._run_id, progress, self._parts)) | {"log": log}
        self._writing = threading.Thread(target=self._write, args=(state,), name="checkpoint")
        self._writing.start()
        if wait:
            self.finish()
        self.stood_still_s += time.monotonic() - begun

    def check(self) -> None:
        """Raise what the last write has failed with."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def finish(self) -> None:
        """Wait until what was saved is on the disk."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        self.check()

    def _write(self, state: dict[str, Any]) -> None:
        try:
            _replace(self._path, state, self._keep)
        except BaseException as error:  # it is the training's to raise
            self._failed = error


def copied(state: Any) -> Any:
    """`state` with its tensors copied into the CPU's memory, so that training may go on changing the originals.

    Tensors on a GPU are copied into one piece of pinned memory for each data type; the host waits once for all.
    """
    tensors = [one for one in _tensors(state) if one.is_cuda]
    there: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(one.dtype for one in tensors):
        alike = [one for one in tensors if one.dtype == dtype]
        whole = torch.empty(sum(one.numel() for one in alike), dtype=dtype, pin_memory=True)
        for one, part in zip(alike, torch.split(whole, [one.numel() for one in alike]), strict=True):
            there[id(one)] = part.view(one.shape).copy_(one.detach(), non_blocking=True)
    if tensors:
        torch.cuda.synchronize(tensors[0].device)
    return _replaced(state, there)


def _tensors(state: Any) -> Iterator[Tensor]:
    match state:
        case Tensor():
            yield state
        case dict():
            yield from (one for value in state.values() for one in _tensors(value))
        case list() | tuple():
            yield from (one for value in state for one in _tensors(value))
        case _:
            pass


def _replaced(state: Any, there: Mapping[int, Tensor]) -> Any:
    match state:
        case Tensor():
            return there[id(state)] if id(state) in there else state.detach().to("cpu", copy=True)
        case dict():
            return {key: _replaced(value, there) for key, value in state.items()}
        case list() | tuple():
            return type(state)(_replaced(value, there) for value in state)
        case _:
            return state


def restore(path: Path, *, run_id: str, parts: Mapping[str, Any]) -> TrainingProgress | None:
    """Bring every part back to where the checkpoint at `path` left it; None if there is no checkpoint.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run or another model.
    """
    return TrainingProgress(**_restored(path, run_id, parts)["progress"]) if path.exists() else None


def _restored(path: Path, run_id: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Bring every part back to where the checkpoint at `path` left it; returns all that it holds."""
    state = _read(path)
    if state["run_id"] != run_id:
        fix = "delete it to start over"
        raise CheckpointError(f"belongs to run {state['run_id']}, not {run_id}", where=str(path), fix=fix)
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        what = f"does not fit this model ({str(error).splitlines()[0]})"
        raise CheckpointError(what, where=str(path), fix="delete it to start over") from error
    return state


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state dict alone: `open_clip.create_model(name, pretrained=path)` reads it.

    Raises:
        StoreError: the disk is full or not writable.
    """
    with replacing(path) as aside:
        _write({"state_dict": model.state_dict()}, aside)


def older(path: Path) -> list[Path]:
    """The checkpoints beside the newest one at `path`, oldest first."""
    return sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))


def remove(path: Path) -> None:
    """Remove the checkpoint at `path` and those before it."""
    for file in (*older(path), path):
        file.unlink(missing_ok=True)


def _state(run_id: str, progress: TrainingProgress, parts: Mapping[str, Any]) -> dict[str, Any]:
    state = {"format": FORMAT, "run_id": run_id, "progress": dict(vars(progress))}
    return state | {name: part.state_dict() for name, part in parts.items()}


def _replace(path: Path, state: dict[str, Any], keep: int) -> None:
    with replacing(path) as aside:
        _write(state, aside)
    if keep > 1:
        _link(path, path.with_name(f"{path.stem}-{state['progress']['step']:09d}{path.suffix}"))
    for file in older(path)[: -keep if keep > 1 else None]:
        file.unlink(missing_ok=True)


def _link(path: Path, to: Path) -> None:
    """A second name for a file that is never written again, only replaced."""
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, to)


def _write(state: dict[str, Any], file: Path) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # how torch puts a write that failed
        full = shutil.disk_usage(file.parent).free < LEAST_FREE_BYTES
        why = os.strerror(errno.ENOSPC) if full else str(error).splitlines()[0]
        raise OSError(errno.ENOSPC if full else errno.EIO, why) from error


def log_of(path: Path) -> str | None:
    """The lines of the training's metrics in the checkpoint at `path`; None if there are none, or it is damaged."""
    try:
        log = _read(path).get("log")
    except CheckpointError:
        return None
    return log if isinstance(log, str) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        # torch.load does not compare the checksums that torch.save writes.
        with open_plain(path) as stream, ZipFile(stream) as archive:
            if (bad := archive.testzip()) is not None:
                raise BadZipFile(f"{bad} differs from its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError) as error:  # it may be whole: an older one must not take its place
        told = as_sentence(error, str(path), CheckpointError)
        assert told is not None
        raise told from error
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        what = f"is no checkpoint, or a damaged one ({type(error).__name__})"
        raise DamagedCheckpointError(what, where=str(path), fix="delete it to start over") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DamagedCheckpointError("is no checkpoint of this version", where=str(path), fix="delete it to start over")
    return state
