"""Losses on the tokens of captions. The towers compute them for each caption."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.config.loss import Captioning, MaskedLanguage
from harness.losses.base import Logs, Objective, PairBatch, objectives

__all__ = ["CaptioningObjective", "MaskedLanguageObjective"]


class _TokensObjective(Objective):
    """The mean cross-entropy over tokens of all captions.

    It is a sum over captions, so each is computed with its own micro-batch; only the number of tokens, by which the sum
    is divided, is that of the whole batch.
    """

    def of_whole(self, whole: PairBatch) -> tuple[Tensor, Logs]:
        """As in Objective. It has no temperature to log."""
        loss, logs = super().of_whole(whole)
        del logs["logit_scale"]
        return loss, logs


def _mean(losses: Tensor | None, counts: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sum of the captions' losses [M] over the sum of their numbers of tokens [M]."""
    if losses is None or counts is None:
        raise ValueError("the loss needs losses of the captions' tokens")
    return losses.to(dtype).sum() / counts.to(dtype).sum().clamp(min=1)


@objectives.register(Captioning)
class CaptioningObjective(_TokensObjective):
    """The cross-entropy of the tokens of captions given their images (CoCa, Yu et al., TMLR 2022), without padding."""

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        return {"captions": _mean(batch.caption_losses, batch.caption_lengths, scale.dtype)}, {}


@objectives.register(MaskedLanguage)
class MaskedLanguageObjective(_TokensObjective):
    """The cross-entropy of masked tokens of captions by the text tower (DeCLIP, Li et al., ICLR 2022)."""

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        return {"words": _mean(batch.word_losses, batch.word_counts, scale.dtype)}, {}
