"""ALIP: CLIP on raw and on synthetic captions, each sample and pair weighted by how well it fits."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.config.loss import ALIP
from harness.losses.base import Logs, Objective, PairBatch, Positives, objectives
from harness.losses.chunks import ChunkPass
from harness.losses.softmax import Terms, contrast

__all__ = ["ALIPObjective"]


@objectives.register(ALIP)
class ALIPObjective(Objective):
    """ALIP (Yang et al., ICCV 2023): L_raw + L_synthetic, each the mean of w_s w_p (CLIP's loss of the pair).

    w_s = min(1, exp(g (<T_raw, T_syn> - H_s))) and w_p = exp(g (<I, T> - H_p)), g = 2, without gradient; each H is a
    running mean of its similarity, 1 at the start, moved by a share .01 before it is used. The released code sets w_p
    to 1 where w_s reaches 1 (`as_coded`).
    """

    has_constant_factors: ClassVar[bool] = True
    means: Tensor

    def __init__(self, spec: ALIP, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.as_coded = spec.gates == "as_coded"
        self.sharpness, self.momentum = spec.sharpness, spec.momentum
        self.register_buffer("means", torch.ones(3))  # of raw-synthetic, image-raw, image-synthetic similarities

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        raw, synthetic = batch.text[_column(batch, True)], batch.text[_column(batch, False)]
        sample, *pair = self._gates(batch.image.to(scale.dtype), raw.to(scale.dtype), synthetic.to(scale.dtype))
        terms: Terms = {}
        own = torch.arange(len(batch.image), device=batch.image.device)
        for name, text, gate in zip(("raw", "synthetic"), (raw, synthetic), pair, strict=True):
            sides = contrast(batch.image, text, Positives(own, own), scale, self.sweep)
            of_image, of_text = sides.cross_entropy(*sides.mean_scores())
            terms[name] = (sample * gate * (of_image + of_text) / 2).mean()
        return terms, {"gate_sample": sample.mean(), "gate_raw": pair[0].mean(), "gate_synthetic": pair[1].mean()}

    @torch.no_grad()
    def _gates(self, image: Tensor, raw: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weights [N] of samples, of raw and of synthetic pairs; in training the running means move first."""
        cosines = torch.stack([(raw * synthetic).sum(1), (image * raw).sum(1), (image * synthetic).sum(1)])
        if self.training:
            self.means.lerp_(cosines.mean(1).to(self.means.dtype), 1 - self.momentum)
        consistency, *pairs = torch.exp(self.sharpness * (cosines - self.means.to(cosines.dtype)[:, None]))
        if self.as_coded:
            pairs = [torch.where(consistency < 1, gate, 1) for gate in pairs]
        return consistency.clamp(max=1), pairs[0], pairs[1]


def _column(batch: PairBatch, raw: bool) -> Tensor:
    """The one raw or synthetic caption of each image, in their order [N].

    Raises:
        ValueError: an image has none or several.
    """
    images = len(batch.image)
    place = batch.owner + images * (batch.is_raw != raw)  # its own captions first
    captions = place.argsort(stable=True)[:images]
    is_one_each = torch.equal(place[captions], torch.arange(images, device=captions.device))
    if len(batch.text) != 2 * images or not is_one_each:
        raise ValueError("alip takes one raw and one synthetic caption per image")
    return captions
