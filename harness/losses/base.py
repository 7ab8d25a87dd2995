"""What every loss takes and gives: a batch of image-caption features, a scalar, and logs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.base.registry import Registry
from harness.config.loss import LossSpec, SumLoss
from harness.losses.chunks import ChunkPass, precise
from harness.losses.queues import FeatureQueue
from harness.parallel.ranks import Ranks

__all__ = ["Logs", "Objective", "PairBatch", "Positives", "gather_pairs", "objectives"]

Logs = dict[str, float | Tensor]


@dataclass(frozen=True)
class Positives:
    """The final positive pairs (image rows[p], caption cols[p]): unique, sorted by row and then by column.

    Whether ground-truth pairs are among them was decided by mining. Under a group of ranks, rows count this rank's
    images and cols count the captions of the whole batch in the order of ranks.
    """

    rows: Tensor
    """[P] long."""
    cols: Tensor
    """[P] long."""

    @classmethod
    def ground_truth(cls, owner: Tensor) -> Positives:
        """Every caption with its own image; `owner` [M] is the image of each caption."""
        rows, cols = torch.sort(owner, stable=True)
        return cls(rows, cols)

    @classmethod
    def from_pairs(cls, rows: Tensor, cols: Tensor, captions: int) -> Positives:
        """Pairs in any order and number, of a batch with `captions` captions."""
        keys = torch.unique(rows * captions + cols)
        return cls(keys // captions, keys % captions)

    def __len__(self) -> int:
        return len(self.rows)

    def dense(self, images: int, captions: int) -> Tensor:
        """The mask Y, [N, M] bool."""
        mask = torch.zeros(images, captions, dtype=torch.bool, device=self.rows.device)
        mask[self.rows, self.cols] = True
        return mask

    def counts(self, images: int, captions: int) -> tuple[Tensor, Tensor]:
        """How many positives every image [N] and every caption [M] has, as float32."""
        one = torch.ones(len(self), device=self.rows.device)
        per_image = torch.zeros(images, device=one.device).index_add_(0, self.rows, one)
        return per_image, torch.zeros(captions, device=one.device).index_add_(0, self.cols, one)


@dataclass(frozen=True)
class PairBatch:
    """N images with their M captions, as features; what one rank holds, or, after `gather_pairs`, all of them."""

    image: Tensor
    """[N, d] unit rows of the student."""
    text: Tensor
    """[M, d] unit rows of the student."""
    owner: Tensor
    """[M] long: the image that each caption belongs to."""
    slot: Tensor
    """[M] long: the caption's place among those of its image, 0 to k - 1."""
    is_raw: Tensor
    """[M] bool: the caption came with the image; otherwise a captioner wrote it."""
    positives: Positives | None = None
    """The mined positives; None stands for the ground truth."""
    teacher_image: Tensor | None = None
    """[N, e] unit rows of the frozen teacher."""
    teacher_text: Tensor | None = None
    """[M, e] unit rows of the frozen teacher."""
    epoch: float = 0.0
    """Progress of training in epochs."""
    image_tokens: Tensor | None = None
    """[N, p, d] unit rows: the student's patches."""
    text_tokens: Tensor | None = None
    """[M, l, d] unit rows: the student's tokens, the same l on every rank."""
    text_mask: Tensor | None = None
    """[M, l] bool: the token is not padding."""
    image_views: Tensor | None = None
    """[N, v, d] unit rows: the student's features of v further augmentations of each image."""
    text_views: Tensor | None = None
    """[M, v, d] unit rows: the student's features of v further edits of each caption."""
    negative_text: Tensor | None = None
    """[M, d] unit rows: the student's features of each caption edited so that it belongs to no image."""
    has_negative: Tensor | None = None
    """[M] bool: an edit applied to the caption; the other rows of `negative_text` mean nothing."""
    samples: Tensor | None = None
    """[N] long: the images' numbers in the data set, for losses that need them."""
    word_losses: Tensor | None = None
    """[M]: the negative log-likelihood of the masked tokens of each caption by the student's text tower, summed."""
    word_counts: Tensor | None = None
    """[M]: the number of these tokens."""
    caption_losses: Tensor | None = None
    """[M]: the negative log-likelihood of each caption by the student's decoder, summed over its tokens."""
    caption_lengths: Tensor | None = None
    """[M]: the number of these tokens."""
    momentum_image: Tensor | None = None
    """[N, d] unit rows of the momentum towers, without a gradient."""
    momentum_text: Tensor | None = None
    """[M, d] unit rows of the momentum towers, without a gradient."""
    momentum_views: Tensor | None = None
    """[N, w, d] unit rows of the momentum towers, of w further augmentations of each image."""
    momentum_patches: Tensor | None = None
    """[N, p, d] unit rows of the momentum towers: the patches of the first of these augmentations."""
    momentum_tokens: Tensor | None = None
    """[M, l, d] unit rows of the momentum towers: the captions' tokens, the same l on every rank."""
    momentum_mask: Tensor | None = None
    """[M, l] bool: the token is neither a caption's first, nor its last, nor padding."""

    @property
    def final_positives(self) -> Positives:
        """The mined positives, or the ground truth where nothing was mined."""
        return Positives.ground_truth(self.owner) if self.positives is None else self.positives

    def by_slot(self) -> Tensor:
        """[k, N] long: the caption in each slot of each image.

        Raises:
            ValueError: not every image has the same slots.
        """
        images, captions = len(self.image), len(self.text)
        order = torch.argsort(self.slot * images + self.owner)
        if captions % images or not torch.equal(
            self.owner[order], torch.arange(captions, device=order.device) % images
        ):
            raise ValueError(f"{captions} captions do not fill the same slots of {images} images")
        return order.view(-1, images)

    def squares(self) -> Iterator[tuple[Tensor, Positives]]:
        """Per slot, the text features [N, d] in the order of their images, and the pairs (i, i)."""
        own = torch.arange(len(self.image), device=self.image.device)
        return ((self.text[slot], Positives(own, own)) for slot in self.by_slot())


def gather_pairs(batch: PairBatch, ranks: Ranks) -> PairBatch:
    """The whole batch on every rank: images and captions in the order of ranks, owners and positives renumbered.

    All ranks must hold equally many images and captions. Gradients flow back to the student's features.
    """
    if ranks.size == 1:
        return batch
    first = ranks.rank * len(batch.image)
    positives = batch.positives
    if positives is not None:
        positives = Positives(ranks.all_gather_ragged(positives.rows + first), ranks.all_gather_ragged(positives.cols))
    optional = {
        name: None if part is None else ranks.all_gather(part)
        for name, part in {
            "teacher_image": batch.teacher_image,
            "teacher_text": batch.teacher_text,
            "image_tokens": batch.image_tokens,
            "text_tokens": batch.text_tokens,
            "text_mask": batch.text_mask,
            "image_views": batch.image_views,
            "text_views": batch.text_views,
            "negative_text": batch.negative_text,
            "has_negative": batch.has_negative,
            "samples": batch.samples,
            "word_losses": batch.word_losses,
            "word_counts": batch.word_counts,
            "caption_losses": batch.caption_losses,
            "caption_lengths": batch.caption_lengths,
            "momentum_image": batch.momentum_image,
            "momentum_text": batch.momentum_text,
            "momentum_views": batch.momentum_views,
            "momentum_patches": batch.momentum_patches,
            "momentum_tokens": batch.momentum_tokens,
            "momentum_mask": batch.momentum_mask,
        }.items()
    }
    return PairBatch(
        image=ranks.all_gather(batch.image),
        text=ranks.all_gather(batch.text),
        owner=ranks.all_gather(batch.owner + first),
        slot=ranks.all_gather(batch.slot),
        is_raw=ranks.all_gather(batch.is_raw),
        positives=positives,
        epoch=batch.epoch,
        **optional,
    )


class Objective(nn.Module, ABC):
    """A loss with its temperature: z = exp(log_scale) * cosine.

    Every rank of `ranks` calls it with its own part of the batch. On each, the value is the loss of the whole batch;
    the features' gradients are `ranks.size` times that loss's, made for gradients that are *averaged* over ranks, as
    DistributedDataParallel does. The gradients of `log_scale` and `bias` are the same everywhere and need no
    reduction; averaging them once more does no harm.

    The state dict holds the parameters and, for losses that have one, the running state.
    """

    has_constant_factors: ClassVar[bool] = False
    """By its definition, some factor that depends on the features or the temperature gets no gradient."""

    def __init__(self, spec: LossSpec, sweep: ChunkPass) -> None:
        super().__init__()
        self.sweep = sweep
        self.state_needs(spec)
        self.max_log_scale = math.inf if spec.max_logit_scale is None else math.log(spec.max_logit_scale)
        start = torch.tensor(math.log(spec.logit_scale), dtype=torch.float32)
        self.log_scale = nn.Parameter(start, requires_grad=spec.learn_logit_scale)

    def state_needs(self, spec: LossSpec | SumLoss) -> None:
        """Take over what the trainer has to make for the loss."""
        self.needs_tokens, self.needs_decoder = spec.needs_tokens, spec.needs_decoder
        self.needs_samples, self.momentum_need = spec.needs_samples, spec.momentum_need

    @abstractmethod
    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[dict[str, Tensor], Logs]:
        """The weighted terms of the loss of the whole `batch`, by name: the loss is their sum. And further logs."""

    def forward(self, batch: PairBatch) -> tuple[Tensor, Logs]:
        """The loss and its logs: `loss/<term>` each, `logit_scale`, `positives_per_image` and the loss's own."""
        with torch.autocast(batch.image.device.type, enabled=False):
            read = batch if self.needs_samples else replace(batch, samples=None)
            return self.of_whole(gather_pairs(read, self.sweep.ranks))

    def of_whole(self, whole: PairBatch) -> tuple[Tensor, Logs]:
        """The same of the batch of all ranks, which `gather_pairs` gives."""
        dtype = precise(whole.image.dtype)
        scale = self.sweep.ranks.agreed(self.log_scale).exp()
        terms, logs = self._terms(whole, scale.to(dtype))
        loss = torch.stack([term.to(dtype) for term in terms.values()]).sum()
        logs |= {f"loss/{name}": term.detach() for name, term in terms.items()}
        logs["logit_scale"] = scale.detach()
        pairs = len(whole.text) if whole.positives is None else len(whole.positives)
        logs["positives_per_image"] = pairs / len(whole.image)
        return loss, logs

    def build_heads(self, width: int, make: torch.Generator) -> None:
        """Make the modules that take features of this width, initialised by `make`; most losses have none.

        Every rank makes the same, and computes them on the whole batch.
        """

    def compute_by(self, sweep: ChunkPass) -> None:
        """From now on, compute with other chunks or ranks."""
        self.sweep = sweep

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the scale at or under its maximum; call it after each optimiser step."""
        self.log_scale.clamp_(max=self.max_log_scale)

    def advance(self) -> None:
        """Let the step's features into the queues, where it has any; call it after each optimiser step."""
        for queue in self._queues:
            queue.advance()

    @property
    def running_state(self) -> list[Tensor]:
        """The buffers that `forward` moves in training, and a step that failed has to set back."""
        queued = {id(buffer) for queue in self._queues for buffer in queue.buffers()}
        return [buffer for buffer in self.buffers() if id(buffer) not in queued]

    @property
    def _queues(self) -> list[FeatureQueue]:
        return [module for module in self.modules() if isinstance(module, FeatureQueue)]

    @torch.no_grad()
    def start_at(self, scale: float, bias: float | None) -> None:  # noqa: ARG002 - of losses that have one
        """Start at another factor t and, in losses that have one, another bias (None: the spec's)."""
        self.log_scale.fill_(math.log(scale))
        self.clamp_()

    def calibrate(self, batches: Iterable[PairBatch]) -> None:
        """Set what has to be estimated on the first batches, before training.

        Most losses have nothing and draw none of `batches`, which are made as they are drawn.
        """


objectives: Registry[[ChunkPass], Objective] = Registry("loss")
"""The objective of each loss spec; each registers itself where it is defined."""
