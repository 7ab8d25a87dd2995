"""A margin loss of one's own, for own_parts.toml; `harness part new loss` writes this file."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.losses import ChunkPass, Logs, LossSpec, Objective, PairBatch


class MarginLoss(Objective):
    """Each negative has to be `margin` less similar than the caption's positives (VSE, Kiros et al., 2014)."""

    class Parameters(LossSpec):
        """What a spec can set, besides the temperature that every loss has."""

        needs_teacher: ClassVar[bool] = False  # reads batch.teacher_image or batch.teacher_text
        needs_tokens: ClassVar[bool] = False  # reads batch.image_tokens, batch.text_tokens or batch.text_mask
        uses_mining: ClassVar[bool] = True  # reads batch.positives: mined pairs, or the ground truth

        margin: float = Field(0.2, ge=0)
        """Least difference of the cosines."""

    def __init__(self, spec: Parameters, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.margin = spec.margin

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:  # noqa: ARG002
        """The loss of the whole batch as named terms, whose sum it is, and further values to log.

        Every process gets the batch of all: do not average over processes. `scale` is exp(self.log_scale).
        """
        cosines = batch.image @ batch.text.T  # [images, captions]
        positive = batch.final_positives.dense(*cosines.shape)  # [images, captions] bool
        mean = (cosines * positive).sum(0) / positive.sum(0).clamp(min=1)  # [captions]
        violations = torch.relu(self.margin + cosines - mean) * (~positive)
        return {"hinge": violations.sum() / (~positive).sum().clamp(min=1)}, {
            "share_violated": (violations > 0).float().mean()
        }
