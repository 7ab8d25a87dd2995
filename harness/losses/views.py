"""Losses on further views: augmentations of the images, edits of the captions, and projection heads for them."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from harness.config.loss import InModal, MultiView, NegCLIP, SimCLR, SimSiam
from harness.losses.base import Logs, Objective, PairBatch, Positives, objectives
from harness.losses.chunks import ChunkPass, log_normalisers, pair_cosines
from harness.losses.heads import mlp, projected
from harness.losses.softmax import clip_terms, contrast, smoothed_terms

__all__ = ["InModalObjective", "MultiViewObjective", "NegCLIPObjective", "SimCLRObjective", "SimSiamObjective"]


def _there(features: Tensor | None, what: str) -> Tensor:
    if features is None:
        raise ValueError(f"the loss needs {what}")
    return features


def _two_images(batch: PairBatch, two_views: bool) -> tuple[Tensor, Tensor]:
    """Two views of each image [N, d]: its two further views, or itself and its first."""
    views = _there(batch.image_views, "further views of the images")
    return (views[:, 0], views[:, 1]) if two_views else (batch.image, views[:, 0])


@objectives.register(SimCLR)
class SimCLRObjective(Objective):
    """NT-Xent (Chen et al., ICML 2020), as in SLIP (Mu et al., ECCV 2022).

    Each of the 2N views has one positive, the other view of its image, and 2N - 2 negatives.
    """

    def __init__(self, spec: SimCLR, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.two_views = spec.between == "two_views"
        self.sizes = None if spec.head == "none" else (spec.hidden, spec.hidden, spec.width)
        self.head: nn.Module = nn.Identity()

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """The projection."""
        if self.sizes is not None:
            self.head = mlp(width, self.sizes, make)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        ours = [projected(self.head, one, scale.dtype) for one in _two_images(batch, self.two_views)]
        both, count = torch.cat(ours), len(batch.image)
        every = torch.arange(2 * count, device=both.device)
        other = (every + count) % (2 * count)
        z = scale * pair_cosines(both, both, every, other)
        normalisers, _ = log_normalisers(both, both, scale, self.sweep, (every, every))
        return {"contrast": (normalisers - z).mean()}, {}


@objectives.register(MultiView)
class MultiViewObjective(Objective):
    """The mean of CLIP's losses over all pairs of an image view and a text view.

    DeCLIP's multi-view supervision (Li et al., ICLR 2022) and, behind heads and smoothed, CLIP-Rocket's strong branch
    (Fini et al., TMLR 2023).
    """

    def __init__(self, spec: MultiView, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.spec = spec
        self.image_head: nn.Module = nn.Identity()
        self.text_head: nn.Module = nn.Identity()

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """A projection of each modality."""
        if self.spec.head == "mlp":
            sizes = (self.spec.hidden, self.spec.hidden, self.spec.width)
            self.image_head, self.text_head = mlp(width, sizes, make), mlp(width, sizes, make)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        images = list(_there(batch.image_views, "further views of the images")[:, : self.spec.images].unbind(1))
        texts = list(_there(batch.text_views, "further views of the captions")[:, : self.spec.texts].unbind(1))
        if self.spec.originals:
            images, texts = [batch.image, *images], [batch.text, *texts]
        if self.spec.head == "mlp":
            images = [projected(self.image_head, view, scale.dtype) for view in images]
            texts = [projected(self.text_head, view, scale.dtype) for view in texts]
        truth, smoothing = Positives.ground_truth(batch.owner), self.spec.smoothing
        terms = [smoothed_terms(image, text, truth, scale, self.sweep, smoothing) for image in images for text in texts]
        return {name: torch.stack([one[name] for one in terms]).mean() for name in terms[0]}, {}


@objectives.register(InModal)
class InModalObjective(Objective):
    """CleanCLIP's in-modal loss (Bansal et al., ICCV 2023): half the cross-entropy of images to their augmentations,
    and half that of captions to their edits.
    """

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        views = (
            (batch.image, _there(batch.image_views, "further views of the images")[:, 0]),
            (batch.text, _there(batch.text_views, "further views of the captions")[:, 0]),
        )
        image, text = (self._to_view(*pair, scale) for pair in views)
        return {"image_to_image": image / 2, "text_to_text": text / 2}, {}

    def _to_view(self, features: Tensor, view: Tensor, scale: Tensor) -> Tensor:
        every = torch.arange(len(features), device=features.device)
        sides = contrast(features, view, Positives(every, every), scale, self.sweep)
        return (sides.per_image - sides.z).mean()


@objectives.register(SimSiam)
class SimSiamObjective(Objective):
    """SimSiam (Chen and He, CVPR 2021): half the negative cosine of each view's prediction and the other's projection,
    which is held fixed. Heads as in DeCLIP.
    """

    has_constant_factors: ClassVar[bool] = True

    def __init__(self, spec: SimSiam, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.spec = spec
        self.projector: nn.Module = nn.Identity()
        self.predictor: nn.Module = nn.Identity()

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """The projection and the prediction."""
        if self.spec.head == "mlp":
            self.projector = mlp(width, (self.spec.width,) * 3, make, norm_last=True)
            self.predictor = mlp(self.spec.width, (self.spec.bottleneck, self.spec.width), make)

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        own = next((parameter.dtype for parameter in self.projector.parameters()), scale.dtype)
        two = _two_images(batch, self.spec.between == "two_views")
        projections = [self.projector(view.to(own)) for view in two]
        predicted = [projected(self.predictor, one, scale.dtype) for one in projections]
        fixed = [F.normalize(one.detach().to(scale.dtype), dim=1) for one in projections]
        cosines = [(predicted[a] * fixed[b]).sum(1).mean() for a, b in ((0, 1), (1, 0))]
        return {"cosine": -torch.stack(cosines).mean()}, {}


@objectives.register(NegCLIP)
class NegCLIPObjective(Objective):
    """NegCLIP (Yuksekgonul et al., ICLR 2023), `ClipLoss` of its code: images against all captions and their hard
    negatives, captions against all images.
    """

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        negative = _there(batch.negative_text, "hard-negative captions")
        there = _there(batch.has_negative, "hard-negative captions")
        texts = torch.cat([batch.text, negative[there]])  # those without a pair count in the images' normalisers only
        terms = clip_terms(batch.image, texts, Positives.ground_truth(batch.owner), scale, self.sweep)
        return terms, {"hard_negatives": there.sum() / len(there)}
