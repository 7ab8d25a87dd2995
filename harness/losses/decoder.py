"""The loss of a captioning decoder. The decoder belongs to the model: the towers compute it for each caption."""

from __future__ import annotations

from torch import Tensor

from harness.config.loss import Captioning
from harness.losses.base import Logs, Objective, PairBatch, objectives

__all__ = ["CaptioningObjective"]


@objectives.register(Captioning)
class CaptioningObjective(Objective):
    """The mean cross-entropy over the tokens of all captions (CoCa, Yu et al., TMLR 2022), padding left out.

    It is a sum over captions, so each is computed with its own micro-batch; only the number of tokens, by which the sum
    is divided, is that of the whole batch.
    """

    def of_whole(self, whole: PairBatch) -> tuple[Tensor, Logs]:
        """As in Objective. It has no temperature to log."""
        loss, logs = super().of_whole(whole)
        del logs["logit_scale"]
        return loss, logs

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        if batch.caption_losses is None or batch.caption_lengths is None:
            raise ValueError("captioning needs the losses of a decoder")
        total, tokens = batch.caption_losses.to(scale.dtype).sum(), batch.caption_lengths.to(scale.dtype).sum()
        return {"captions": total / tokens.clamp(min=1)}, {}
