"""Losses made of log-normalisers and a sparse target that is linear in the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, assert_never

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.config.loss import FNC, MACL, MAFA, InfoNCE, SoftTargetInfoNCE, SupConIn, SupConOut
from harness.losses.base import Logs, Objective, PairBatch, Positives, objectives
from harness.losses.chunks import ChunkPass, log_normalisers, pair_cosines

__all__ = [
    "FNCObjective",
    "InfoNCEObjective",
    "MACLObjective",
    "MAFAObjective",
    "MultiPositiveObjective",
    "Sides",
    "clip_terms",
    "contrast",
    "log_mean_exp",
    "smoothed_terms",
]

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Sides:
    """Scores z = t s seen from the images and from the captions, and a sparse set of pairs.

    A row (an image, or a caption) without a pair has no target: it is left out of the mean over rows.
    """

    per_image: Tensor
    """[N] log of the sum of exp(z) over captions."""
    per_text: Tensor
    """[M] log of the sum of exp(z) over images."""
    pairs: Positives
    z: Tensor
    """[P] scores of the pairs."""
    image_count: Tensor
    """[N] how many pairs each image has."""
    text_count: Tensor
    """[M] how many pairs each caption has."""

    def mean_scores(self) -> tuple[Tensor, Tensor]:
        """The mean of z over the pairs of each image [N] and of each caption [M]; 0 where there are none."""
        rows, cols = self.pairs.rows, self.pairs.cols
        by_image = torch.zeros_like(self.per_image).index_add(0, rows, self.z / self.image_count[rows])
        return by_image, torch.zeros_like(self.per_text).index_add(0, cols, self.z / self.text_count[cols])

    def mean_exponentials(self) -> tuple[Tensor, Tensor]:
        """The logarithm of the mean of exp(z), likewise."""
        by_image = log_mean_exp(self.z, self.pairs.rows, self.image_count)
        return by_image, log_mean_exp(self.z, self.pairs.cols, self.text_count)

    def cross_entropy(self, by_image: Tensor, by_text: Tensor) -> tuple[Tensor, Tensor]:
        """Normaliser minus the target's score, of each image [N] and each caption [M]."""
        return self.per_image - by_image, self.per_text - by_text

    def terms(self, of_image: Tensor, of_text: Tensor) -> Terms:
        """Half the mean of both directions' losses over the rows that have a pair; 0 where none has."""
        return {
            "image_to_text": _masked_mean(of_image, self.image_count > 0) / 2,
            "text_to_image": _masked_mean(of_text, self.text_count > 0) / 2,
        }


def contrast(
    image: Tensor,
    text: Tensor,
    pairs: Positives,
    scale: Tensor,
    sweep: ChunkPass,
    excluded: tuple[Tensor, Tensor] | None = None,
) -> Sides:
    """Both sides of `image` [N, d] against `text` [M, d] with target pairs; `excluded` leave the normalisers."""
    per_image, per_text = log_normalisers(image, text, scale, sweep, excluded)
    z = scale * pair_cosines(image, text, pairs.rows, pairs.cols)
    image_count, text_count = (count.to(z.dtype) for count in pairs.counts(len(image), len(text)))
    return Sides(per_image, per_text, pairs, z, image_count, text_count)


def clip_terms(image: Tensor, text: Tensor, pairs: Positives, scale: Tensor, sweep: ChunkPass) -> Terms:
    """Cross-entropy to the row-normalised pairs; with one pair a row it is CLIP's loss."""
    sides = contrast(image, text, pairs, scale, sweep)
    return sides.terms(*sides.cross_entropy(*sides.mean_scores()))


def smoothed_terms(
    image: Tensor, text: Tensor, pairs: Positives, scale: Tensor, sweep: ChunkPass, smoothing: float
) -> Terms:
    """Cross-entropy to the row-normalised pairs, of whose weight `smoothing` is spread evenly over the batch."""
    sides = contrast(image, text, pairs, scale, sweep)
    image, text = image.to(scale.dtype), text.to(scale.dtype)
    uniform = (scale * (image @ text.mean(0)), scale * (text @ image.mean(0)))
    pairs_share = 1 - smoothing
    target = [pairs_share * hit + smoothing * flat for hit, flat in zip(sides.mean_scores(), uniform, strict=True)]
    return sides.terms(*sides.cross_entropy(*target))


@objectives.register(InfoNCE)
class InfoNCEObjective(Objective):
    """CLIP (Radford et al., ICML 2021), against the ground truth.

    With k captions per image either one softmax over all captions (`pooled`; each of an image's captions is a target
    with weight 1/k) or the mean of the k losses of one caption per image (`slotwise`).
    """

    def __init__(self, spec: InfoNCE, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.normaliser = spec.normaliser

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        if self.normaliser == "pooled":
            truth = Positives.ground_truth(batch.owner)
            return clip_terms(batch.image, batch.text, truth, scale, self.sweep), {}
        slots = [clip_terms(batch.image, text, own, scale, self.sweep) for text, own in batch.squares()]
        return {name: torch.stack([slot[name] for slot in slots]).mean() for name in slots[0]}, {}


@objectives.register(SoftTargetInfoNCE, SupConOut, SupConIn)
class MultiPositiveObjective(Objective):
    """`soft_target_infonce`, `supcon_out` and `supcon_in`: log-normaliser minus a mean over the positives.

    The mean of z is outside the logarithm for the first two, which are one function under two names, and inside it,
    log mean exp(z), for `supcon_in`. No factor tau / base_tau: with a learned temperature it is wrong.
    """

    def __init__(self, spec: SoftTargetInfoNCE | SupConOut | SupConIn, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        match spec:
            case SupConIn():
                self.inside = True
            case SupConOut() | SoftTargetInfoNCE():
                self.inside = False
            case _:
                assert_never(spec)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        sides = contrast(batch.image, batch.text, batch.final_positives, scale, self.sweep)
        target = sides.mean_exponentials() if self.inside else sides.mean_scores()
        return sides.terms(*sides.cross_entropy(*target)), {}


@objectives.register(MAFA)
class MAFAObjective(Objective):
    """MAFA's smoothed InfoNCE (Byun et al., CVPR 2024): target (1 - a) rownorm(Y) + a uniform; a = 0 at first."""

    def __init__(self, spec: MAFA, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.smoothing, self.start = spec.smoothing, spec.smoothing_from_epoch

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        a = self.smoothing if batch.epoch >= self.start else 0.0
        terms = smoothed_terms(batch.image, batch.text, batch.final_positives, scale, self.sweep, a)
        return terms, {"smoothing": a}


@objectives.register(MACL)
class MACLObjective(Objective):
    """MACL (Huang et al., ICML 2023): tau = tau_0 (1 + alpha (A - A_0)), A the mean cosine of positives, detached.

    A pair's loss is -log P, P = exp(z) / (exp(z) + the sum over its row's negatives); other positives of the row are
    no negatives. With `reweight` it is divided by 1 - P, detached.
    """

    has_constant_factors: ClassVar[bool] = True

    def __init__(self, spec: MACL, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.sharpness, self.start, self.reweight = spec.sharpness, spec.alignment_start, spec.reweight

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        pairs = batch.final_positives
        rows, cols = pairs.rows, pairs.cols
        with torch.no_grad():
            cosines = pair_cosines(batch.image, batch.text, rows, cols)
            alignment = cosines.sum() / max(1, len(pairs))
        scale = scale / (1 + self.sharpness * (alignment - self.start))
        sides = contrast(batch.image, batch.text, pairs, scale, self.sweep, excluded=(rows, cols))
        of_image = self._losses(sides.per_image[rows] - sides.z) / sides.image_count[rows]
        of_text = self._losses(sides.per_text[cols] - sides.z) / sides.text_count[cols]
        by_image = torch.zeros_like(sides.per_image).index_add(0, rows, of_image)
        by_text = torch.zeros_like(sides.per_text).index_add(0, cols, of_text)
        logs: Logs = {"alignment": alignment, "logit_scale_in_use": scale.detach()}
        return sides.terms(by_image, by_text), logs

    def _losses(self, x: Tensor) -> Tensor:
        """-log P = softplus(x) of pairs [P], x = the log-sum of the negatives - z; 1 - P = sigmoid(x)."""
        loss = F.softplus(x, threshold=40)
        return loss / x.detach().sigmoid().clamp(min=torch.finfo(x.dtype).tiny) if self.reweight else loss


@objectives.register(FNC)
class FNCObjective(Objective):
    """False-negative cancellation (Huynh et al., WACV 2022): mined pairs that are not ground truth are attracted,
    as further targets of equal weight, or eliminated from the normalisers.
    """

    def __init__(self, spec: FNC, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.attract = spec.strategy == "attract"

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        truth, pairs = Positives.ground_truth(batch.owner), batch.final_positives
        false = batch.owner[pairs.cols] != pairs.rows
        rows, cols = pairs.rows[false], pairs.cols[false]
        if self.attract:
            union = Positives(torch.cat([truth.rows, rows]), torch.cat([truth.cols, cols]))
            return clip_terms(batch.image, batch.text, union, scale, self.sweep), {}
        sides = contrast(batch.image, batch.text, truth, scale, self.sweep, excluded=(rows, cols))
        return sides.terms(*sides.cross_entropy(*sides.mean_scores())), {}


def log_mean_exp(z: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """log of the mean of exp(z) [P] in each group; `count` [n] is the groups' sizes; 0 for empty ones."""
    top = torch.zeros_like(count).scatter_reduce(0, group, z.detach(), "amax", include_self=False)
    total = torch.zeros_like(count).index_add(0, group, (z - top[group]).exp() / count[group])
    return torch.where(count > 0, total, 1).log() + top


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
