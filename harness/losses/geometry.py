"""CLIP with terms on the geometry of the features: CyCLIP, CLOOB, alignment and uniformity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.config.loss import CLOOB, AlignUniform, CyCLIP
from harness.losses.base import Logs, Objective, PairBatch, objectives
from harness.losses.chunks import ChunkPass, log_normalisers, pair_cosines
from harness.losses.softmax import Terms, clip_terms

__all__ = ["AlignUniformObjective", "CLOOBObjective", "CyCLIPObjective"]


@objectives.register(CyCLIP)
class CyCLIPObjective(Objective):
    """CyCLIP (Goel et al., NeurIPS 2022): CLIP plus, per N, the squared differences of similarities

    in-modal (<I_i, I_j> - <T_i, T_j>)^2 and cross-modal (<I_i, T_j> - <I_j, T_i>)^2 over all i, j.
    """

    def __init__(self, spec: CyCLIP, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.in_modal, self.cross_modal = spec.in_modal, spec.cross_modal

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        slots = [
            clip_terms(batch.image, text, own, scale, self.sweep) | self._consistency(batch.image, text)
            for text, own in batch.squares()
        ]
        return {name: torch.stack([slot[name] for slot in slots]).mean() for name in slots[0]}, {}

    def _consistency(self, image: Tensor, text: Tensor) -> Terms:
        """Through d x d moments instead of N x N similarities; in float64, since they are differences of large sums."""
        image, text = image.double(), text.double()
        images, texts, mixed = image.t() @ image, text.t() @ text, image.t() @ text
        in_modal = images.square().sum() + texts.square().sum() - 2 * mixed.square().sum()
        cross_modal = 2 * (images * texts).sum() - 2 * (mixed * mixed.t()).sum()
        return {
            "in_modal": self.in_modal * in_modal / len(image),
            "cross_modal": self.cross_modal * cross_modal / len(image),
        }


@objectives.register(CLOOB)
class CLOOBObjective(Objective):
    """CLOOB (Fürst et al., NeurIPS 2022), as coded: InfoLOOB, times tau, on features retrieved by Hopfield networks.

    U_x, U_y: images retrieved from the images by image and by text; V_x, V_y: texts retrieved likewise. The loss is
    tau (InfoLOOB(U_x, U_y) + InfoLOOB(V_y, V_x)), each with its own pair left out of the normaliser.
    """

    def __init__(self, spec: CLOOB, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.beta = spec.hopfield_scale

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        slots = [self._slot(batch.image.to(scale.dtype), text.to(scale.dtype), scale) for text, _ in batch.squares()]
        return {name: torch.stack([slot[name] for slot in slots]).mean() for name in slots[0]}, {}

    def _slot(self, image: Tensor, text: Tensor, scale: Tensor) -> Terms:
        image_by_image, text_by_text = self._retrieve(image, image), self._retrieve(text, text)
        image_by_text, text_by_image = self._retrieve(text, image), self._retrieve(image, text)
        return {
            "images": self._info_loob(image_by_image, image_by_text, scale) / scale,
            "texts": self._info_loob(text_by_text, text_by_image, scale) / scale,
        }

    def _retrieve(self, state: Tensor, stored: Tensor) -> Tensor:
        """softmax(beta <state, stored>) stored, as unit rows."""
        query, key = state[None, None], stored[None, None]
        found = F.scaled_dot_product_attention(query, key, key, scale=self.beta)
        return F.normalize(found[0, 0], dim=1)

    def _info_loob(self, anchor: Tensor, sample: Tensor, scale: Tensor) -> Tensor:
        own = torch.arange(len(anchor), device=anchor.device)
        others, _ = log_normalisers(anchor, sample, scale, self.sweep, excluded=(own, own))
        return (others - scale * (anchor * sample).sum(1)).mean()


@objectives.register(AlignUniform)
class AlignUniformObjective(Objective):
    """CLIP with alignment and uniformity within and across modalities (Fahim et al., 2024; Wang and Isola, ICML 2020).

    alignment: mean ||I_i - T_j||^2 over positives. Uniformity of X: log mean exp(-2 ||x_i - x_j||^2) over i != j, the
    mean of that of the images and of the texts, these slot by slot. Cross uniformity: the same of images and texts
    over all pairs that are not positive; 0 if there is none.
    """

    def __init__(self, spec: AlignUniform, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.weights = (spec.alignment, spec.uniformity, spec.cross_uniformity)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        pairs = batch.final_positives
        rows, cols = pairs.rows, pairs.cols
        distance = 2 - 2 * pair_cosines(batch.image, batch.text, rows, cols)
        negatives = len(batch.image) * len(batch.text) - len(pairs)
        own = (torch.arange(len(batch.image), device=rows.device),) * 2
        others = len(batch.image) * (len(batch.image) - 1)
        texts = [self._uniformity(text, text, own, others) for text, _ in batch.squares()]
        uniformity = self._uniformity(batch.image, batch.image, own, others) + torch.stack(texts).mean()
        alignment, within, across = self.weights
        return clip_terms(batch.image, batch.text, pairs, scale, self.sweep) | {
            "alignment": alignment * distance.sum() / max(1, len(pairs)),
            "uniformity": within * uniformity / 2,
            "cross_uniformity": across * self._uniformity(batch.image, batch.text, (rows, cols), negatives),
        }, {}

    def _uniformity(self, a: Tensor, b: Tensor, excluded: tuple[Tensor, Tensor], count: int) -> Tensor:
        """log of the mean of exp(-2 ||a_i - b_j||^2) = exp(4 <a_i, b_j> - 4) over the `count` pairs not excluded."""
        four = torch.full((), 4.0, device=a.device)
        per_row, _ = log_normalisers(a, b, four, self.sweep, excluded=excluded)
        if count == 0:
            return torch.zeros_like(per_row).sum()
        return per_row.logsumexp(0) - 4 - math.log(count)
