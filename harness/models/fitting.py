"""Execution of towers on a machine: trimming, activation checkpoints, compilation. Results do not depend on it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from harness.base.errors import ModelError, NotHereError
from harness.config.resources import Resources

if TYPE_CHECKING:
    from harness.models.towers import Towers


def fit_out(towers: Towers, resources: Resources) -> None:
    """Configure `towers` according to `resources`.

    Raises:
        ModelError: the model cannot be run so.
    """
    _trim(towers, resources)
    if resources.gradient_checkpointing:
        _checkpoint_activations(towers)
    if resources.compile:
        _compile(towers)


def choose_device(resources: Resources, number: int) -> torch.device:
    """The GPU with that number, or the CPU. A GPU becomes this thread's current device, on which kernels are launched.

    Raises:
        ModelError: there is no GPU where one is asked for.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resources.device == "cpu" or (resources.device == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        fix = 'use "auto" or "cpu", or look at `harness doctor`'
        raise NotHereError("there is no GPU here", where="resources.device", fix=fix)
    device = torch.device("cuda", number % count)  # a task that sees only its own GPU numbers it 0
    torch.cuda.set_device(device)
    return device


def set_deterministic(deterministic: bool) -> None:
    """Have this process use only deterministic algorithms, or any. Call it before the first operation on a GPU."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when it is first used
    torch.use_deterministic_algorithms(deterministic)


def _trim(towers: Towers, resources: Resources) -> None:
    from harness.models.towers import can_trim  # process groups choose a device, and need no open_clip

    exact = can_trim(towers.model)
    if resources.trim_text == "on" and not exact:
        what = f"texts of {towers.name} cannot be trimmed: its text tower attends to later tokens"
        raise ModelError(what, where="resources.trim_text", fix='leave it at "auto"')
    towers.trims = exact and resources.trim_text != "off"


def _checkpoint_activations(towers: Towers) -> None:
    model: Any = towers.model
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError) as error:
        what = f"{towers.name} cannot compute activations again ({str(error).splitlines()[0] or type(error).__name__})"
        raise ModelError(what, where="resources.gradient_checkpointing", fix="leave it off for this model") from error


def _compile(towers: Towers) -> None:
    """Compile the parts that take most of the time. Text lengths and group sizes change from step to step."""
    model: Any = towers.model
    model.visual.compile()
    text = model.transformer if towers.trims else model.text if "text" in dict(model.named_children()) else model
    if text is not model:
        text.compile(dynamic=True)
