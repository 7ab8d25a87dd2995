"""Contrast of features with prototypes, and the episodes in which prototypes are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.config.loss import Prototypes
from harness.losses.base import Logs, Objective, PairBatch, objectives
from harness.losses.chunks import ChunkPass
from harness.losses.heads import mlp, projected
from harness.losses.kmeans import cluster_means, kmeans, nearest

__all__ = ["PrototypesObjective"]

_STRIP_ELEMENTS = 2**24
Terms = dict[str, Tensor]


@objectives.register(Prototypes)
class PrototypesObjective(Objective):
    """ProtoCLIP's prototypical loss (Chen et al., 2022), with prototypes of the features seen in the last episode.

    A caption chooses the nearest text prototype p. Its image is contrasted with all text prototypes, or with the means
    that replace them among the images (back-translation); the target is softmax(teacher_scale <p, p'>) over prototypes
    p'. The same the other way round.

    The running state, the same on all ranks: features of the samples of the episode that has begun, and the prototypes.
    K-means runs at the start of the step after an episode, before the loss, whose backward pass reads the prototypes.
    """

    seen_samples: Tensor
    """[E] long: indices in the data set."""
    seen_image: Tensor
    """[E, w]"""
    seen_text: Tensor
    """[E, w]"""
    image_prototypes: Tensor
    """[K, w]"""
    text_prototypes: Tensor
    """[K, w]"""
    image_targets: Tensor
    """[K, w]: what images are contrasted with, for each text prototype."""
    text_targets: Tensor
    """[K, w]: what captions are contrasted with, for each image prototype."""
    counts: Tensor
    """[2] long: samples seen in this episode, and episodes that have prototypes. On the CPU, where they are read."""

    def __init__(self, spec: Prototypes, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.spec = spec
        self.seed = 0
        self.image_head: nn.Module = nn.Identity()
        self.text_head: nn.Module = nn.Identity()
        self.build_state(1)

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """The projections, alike at the start as in the published code; and the state, whose width is theirs."""
        spec = self.spec
        if spec.head == "mlp":
            self.image_head = mlp(width, (spec.hidden, spec.width), make)
            self.text_head = mlp(width, (spec.hidden, spec.width), make)
            self.text_head.load_state_dict(self.image_head.state_dict())
            width = spec.width
        self.seed = int(torch.randint(2**31, (), generator=make))
        self.build_state(width)

    def build_state(self, width: int) -> None:
        """Nothing seen, and no prototypes yet."""
        for name in ("seen_image", "seen_text"):
            self.register_buffer(name, torch.zeros(self.spec.episode, width))
        for name in ("image_prototypes", "text_prototypes", "image_targets", "text_targets"):
            self.register_buffer(name, torch.zeros(self.spec.prototypes, width))
        self.register_buffer("seen_samples", torch.zeros(self.spec.episode, dtype=torch.long))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.counts = self.counts.cpu()  # reading them must not wait for a GPU
        return self

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        if batch.samples is None:
            raise ValueError("prototypes need the numbers of the samples")
        texts = [text for text, _ in batch.squares()]
        if len(texts) != 1:
            raise ValueError(f"prototypes take one caption per image, not {len(texts)}")
        image = projected(self.image_head, batch.image, scale.dtype)
        text = projected(self.text_head, texts[0], scale.dtype)
        if self.training:
            self._end_episode()
        episodes = int(self.counts[1])
        terms = {
            "image_to_text": self._contrast(image, text, self.image_targets, self.text_prototypes, scale),
            "text_to_image": self._contrast(text, image, self.text_targets, self.image_prototypes, scale),
        }
        if self.training:
            self._keep(image.detach(), text.detach(), batch.samples)
        return terms, {"episode": float(episodes)}

    def _contrast(self, student: Tensor, teacher: Tensor, targets: Tensor, prototypes: Tensor, scale: Tensor) -> Tensor:
        """Half the mean cross-entropy of `student` [N, w] to what `teacher` [N, w] chooses; 0 without prototypes."""
        if not self.counts[1]:
            return (student.sum() + scale) * 0  # with gradients of 0, as for a term of weight 0
        targets, prototypes = targets.to(scale.dtype), prototypes.to(scale.dtype)
        size = self.sweep.chunk or max(1, _STRIP_ELEMENTS // len(targets))
        strips = zip(torch.split(student, size), torch.split(teacher.detach(), size), strict=True)
        sums = [
            checkpoint(_cross_entropy, *strip, targets, prototypes, scale, self.spec.teacher_scale, use_reentrant=False)
            for strip in strips
        ]
        return torch.stack(sums).sum() / (2 * len(student))

    @torch.no_grad()
    def _keep(self, image: Tensor, text: Tensor, samples: Tensor) -> None:
        """Keep the features of a batch, as far as they still belong to the episode."""
        start = int(self.counts[0])
        stop = min(start + len(image), self.spec.episode)
        for kept, new in ((self.seen_image, image), (self.seen_text, text), (self.seen_samples, samples)):
            kept[start:stop] = new[: stop - start]
        self.counts[0] = stop

    @torch.no_grad()
    def _end_episode(self) -> None:
        """Make prototypes once all samples of the episode have been seen. They are sorted by their numbers first, so
        that the order within batches plays no part."""
        seen, episodes = self.counts.tolist()
        if seen < self.spec.episode:
            return
        spec, ranks = self.spec, self.sweep.ranks
        order = torch.argsort(self.seen_samples, stable=True)
        image, text = self.seen_image[order], self.seen_text[order]
        make = torch.Generator().manual_seed(self.seed + episodes)
        of_image, of_text = (
            kmeans(one, spec.prototypes, iterations=spec.iterations, restarts=spec.restarts, make=make, ranks=ranks)
            for one in (image, text)
        )
        self.image_prototypes.copy_(of_image.centres)
        self.text_prototypes.copy_(of_text.centres)
        if spec.back_translation:
            self.image_targets.copy_(cluster_means(image, of_text.labels, spec.prototypes, ranks)[0])
            self.text_targets.copy_(cluster_means(text, of_image.labels, spec.prototypes, ranks)[0])
        else:
            self.image_targets.copy_(of_text.centres)
            self.text_targets.copy_(of_image.centres)
        self.counts.copy_(torch.tensor([0, episodes + 1]))


def _cross_entropy(
    student: Tensor, teacher: Tensor, targets: Tensor, prototypes: Tensor, scale: Tensor, teacher_scale: float | str
) -> Tensor:
    """Summed over the rows of a strip [c, w]."""
    z = scale * student @ targets.t()
    chosen, _ = nearest(teacher, prototypes)
    if isinstance(teacher_scale, str):
        return F.cross_entropy(z, chosen, reduction="sum")
    weights = (teacher_scale * prototypes[chosen] @ prototypes.t()).softmax(dim=1)
    return F.cross_entropy(z, weights, reduction="sum")
