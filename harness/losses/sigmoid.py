"""The sigmoid family: every pair is its own binary classification."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from harness.base.errors import TrainingError
from harness.config.loss import MultiPositiveSigmoid, Sigmoid
from harness.losses.base import Logs, Objective, PairBatch, gather_pairs, objectives
from harness.losses.chunks import ChunkPass, score_histogram, sigmoid_sum

__all__ = ["MultiPositiveSigmoidObjective", "SigmoidObjective", "calibrated_bias"]


class _SigmoidFamily(Objective):
    """An objective with a bias, z = t s + b."""

    def __init__(self, spec: MultiPositiveSigmoid | Sigmoid, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.calibrated = spec.logit_bias == "calibrated"
        # an uncalibrated bias is NaN on purpose: a forgotten calibration stops the run instead of bending it
        start = torch.nan if spec.logit_bias == "calibrated" else spec.logit_bias
        self.bias = nn.Parameter(torch.tensor(start, dtype=torch.float32), requires_grad=spec.learn_logit_bias)

    def _bias(self, dtype: torch.dtype) -> tuple[Tensor, Logs]:
        """The bias as a scalar of `dtype`, and its log."""
        return self.sweep.ranks.agreed(self.bias).to(dtype), {"logit_bias": self.bias.detach().clone()}

    @torch.no_grad()
    def start_at(self, scale: float, bias: float | None) -> None:
        """As in Objective."""
        super().start_at(scale, bias)
        if bias is not None:
            self.calibrated = False
            self.bias.fill_(bias)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[PairBatch]) -> None:
        """With `logit_bias = "calibrated"`, set the bias to where dL/db = 0 on `batches`; else do nothing."""
        if self.calibrated:
            self.bias.fill_(calibrated_bias(batches, float(self.log_scale.exp()), self.sweep))


@objectives.register(MultiPositiveSigmoid)
class MultiPositiveSigmoidObjective(_SigmoidFamily):
    """FFF, Eq. 2 (Bulat et al., CVPR 2024): (1/M) sum_ij softplus(-m_ij z_ij), z = t s + b, m = 2 Y - 1."""

    def __init__(self, spec: MultiPositiveSigmoid, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.per_caption = spec.normaliser == "captions"

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        bias, logs = self._bias(scale.dtype)
        pairs = batch.final_positives
        total = sigmoid_sum(batch.image, batch.text, scale, bias, (pairs.rows, pairs.cols), self.sweep)
        return {"pairs": total / len(batch.text if self.per_caption else batch.image)}, logs


@objectives.register(Sigmoid)
class SigmoidObjective(_SigmoidFamily):
    """SigLIP (Zhai et al., ICCV 2023); of k captions per image, the mean of the k losses of one caption each."""

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        bias, logs = self._bias(scale.dtype)
        slots = [
            sigmoid_sum(batch.image, text, scale, bias, (own.rows, own.cols), self.sweep)
            for text, own in batch.squares()
        ]
        return {"pairs": torch.stack(slots).mean() / len(batch.image)}, logs


def calibrated_bias(batches: Iterable[PairBatch], scale: float, sweep: ChunkPass) -> float:
    """The bias b with sum sigmoid(scale s_ij + b) = number of positives, over all pairs of all `batches`.

    That is dL/db = 0, and the left side is monotone in b, so bisection finds it. The scores are read once, into a
    histogram of 2^16 bins over [-scale, scale]: b is exact to half a bin, scale / 65536.

    For a constant cosine mu and k captions per image it is b* = -scale * mu - log(N - 1).

    Raises:
        TrainingError: there are no positives, or nothing else.
    """
    whole = [gather_pairs(batch, sweep.ranks) for batch in batches]
    positives = sum(len(batch.final_positives) for batch in whole)
    pairs = sum(len(batch.image) * len(batch.text) for batch in whole)
    if not 0 < positives < pairs:
        what = f"{positives:,} of {pairs:,} pairs are positives, so no bias can be calibrated"
        raise TrainingError(what, where="loss.logit_bias", fix="change the thresholds of mining, or state a number")
    centres, counts = score_histogram([(batch.image, batch.text) for batch in whole], scale, sweep)
    low, high = -scale - 60.0, scale + 60.0
    for _ in range(80):
        middle = (low + high) / 2
        above = float((counts * torch.sigmoid(centres + middle)).sum()) > positives
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2
