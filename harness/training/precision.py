"""Autocast of the towers, and the scaling of the loss that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from harness.base.errors import TrainingError

SMALLEST_SCALE = 2.0**-14
"""A loss scale below this means that gradients are not too large for float16 but not finite at all."""


class Precision:
    """How the towers compute. The state is the loss scale's; it is empty without float16."""

    def __init__(self, name: Literal["float32", "tf32", "bfloat16", "float16"], device: torch.device) -> None:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = name == "tf32"  # by default torch allows it for convolutions
        self._kind = device.type
        self._dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled, so that a gradient that is not finite is no end but a smaller scale."""
        return self._scaler.is_enabled()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the towers run."""
        return torch.autocast(self._kind, self._dtype, enabled=self._dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, scaled."""
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Bring the gradients of the optimiser's parameters back to their size."""
        if self.scales:
            self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Update the parameters, unless a scaled gradient was not finite: then lower the scale. What to log.

        Raises:
            TrainingError: no scale makes the gradients finite.
        """
        self._scaler.step(optimiser)
        self._scaler.update()
        if not self.scales:
            return {}
        if (scale := self._scaler.get_scale()) < SMALLEST_SCALE:
            what = "the gradient is not finite at any loss scale"
            raise TrainingError(what, where="train.precision", fix='use "bfloat16", or lower train.optimiser.lr')
        return {"loss_scale": scale}

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and what moves it."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state."""
        if state or self.scales:
            self._scaler.load_state_dict(state)
