"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """w_avg <- decay w_avg + (1 - decay) w after every step, over parameters and buffers; integers are copied.

    The first steps do not count less: the average starts at the initial weights, as in open_clip's and timm's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the average; call it after each optimiser step."""
        floats: list[tuple[Tensor, Tensor]] = []
        for name, tensor in self._model.state_dict().items():
            if tensor.is_floating_point():
                floats.append((self._average[name], tensor))
            else:
                self._average[name].copy_(tensor)
        averages, tensors = ([pair[side] for pair in floats] for side in (0, 1))
        torch._foreach_lerp_(averages, tensors, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the average's weights, for the time of the block."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return self._average

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an average.

        Raises:
            KeyError: it is one of another model.
        """
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
