"""The batches of a run: which samples, which captions, as pixels and tokens, with the teacher's features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import tee

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.base.errors import DataError
from harness.base.registry import Registry
from harness.config.batches import DebiasedBatches, GroupedBatches, RandomBatches
from harness.config.experiment import Experiment
from harness.config.resources import Resources
from harness.data.dataset.caption_choice import RAW, Chosen, check_available, choose_batch, texts
from harness.data.dataset.dataset import Dataset
from harness.data.dataset.loader import ImageBatches
from harness.data.dataset.order import debiased_order
from harness.data.dataset.prefetch import prefetched
from harness.data.dataset.text_edits import edited_texts, hard_negatives, masked_tokens
from harness.features import TeacherFeatures
from harness.losses import PairBatch
from harness.mining import grouped_order
from harness.models import Towers, token_mask
from harness.models.transfer import sent
from harness.parallel.ranks import Ranks

Ints = npt.NDArray[np.int64]

AHEAD = 2
"""Whole batches made ahead of the training where there are loader workers."""


@dataclass(frozen=True)
class Batch:
    """N images and their M captions, in the order of the images: a process's part of a global batch, or less of it."""

    samples: Ints
    """[N] indices in the data set."""
    everyone: Ints
    """Indices of all samples of the global batch."""
    first: int
    """Place of the first image in the global batch."""
    chosen: Chosen
    """Which captions."""
    images: Tensor
    """[N, 3, H, W] pixels, uint8."""
    views: Tensor
    """[N, v, 3, H, W] pixels, uint8: the further augmentations that the loss reads."""
    tokens: Tensor
    """[M, L] token ids."""
    text_views: Tensor
    """[M, v, L] token ids: the further edits of each caption that the loss reads; the last may be a hard negative."""
    has_negative: Tensor | None
    """[M] bool: the last of the further edits is a hard negative; None if none is."""
    masked: Tensor | None
    """[M, 2, L] token ids with some masked, and those to predict, -1 elsewhere; None if the loss reads none."""
    epoch: float
    """Progress of training in epochs."""
    teacher_image: Tensor | None
    """[N, e]"""
    teacher_text: Tensor | None
    """[M, e]"""
    momentum_views: Tensor | None = None
    """[N, w, 3, H, W] pixels, uint8: the augmentations that the momentum towers see; `views` begin with the same."""

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch cut into parts of `size` images each."""
        return (part for part, _, _ in self.placed_parts(size))

    def placed_parts(self, size: int) -> Iterator[tuple[Batch, slice, slice]]:
        """The parts of `size` images each, and where their images and their captions stand in the whole."""
        if size >= len(self.samples):
            yield self, slice(None), slice(None)
            return
        for start in range(0, len(self.samples), size):
            images = slice(start, start + size)
            texts = slice(*np.searchsorted(self.chosen.owner, (images.start, images.stop)).tolist())
            yield self._part(images, texts), images, texts

    def _part(self, images: slice, texts: slice) -> Batch:
        owner, source, position, slot = (
            field[texts] for field in (self.chosen.owner, self.chosen.source, self.chosen.position, self.chosen.slot)
        )
        return replace(
            self,
            samples=self.samples[images],
            first=self.first + images.start,
            chosen=Chosen(owner - images.start, source, position, slot),
            images=self.images[images],
            views=self.views[images],
            momentum_views=None if self.momentum_views is None else self.momentum_views[images],
            tokens=self.tokens[texts],
            text_views=self.text_views[texts],
            has_negative=None if self.has_negative is None else self.has_negative[texts],
            masked=None if self.masked is None else self.masked[texts],
            teacher_image=None if self.teacher_image is None else self.teacher_image[images],
            teacher_text=None if self.teacher_text is None else self.teacher_text[texts],
        )

    def pairs(self, image: Tensor, text: Tensor, captions: Tensor | None = None) -> PairBatch:
        """The batch with the student's features of its images [N, d] and captions [M, d].

        For losses on tokens [N, 1 + p, d] and [M, 1 + L, d]: those of the tokens follow that of the whole. For losses
        on views, those of the views are the last [N, ... + v, d], and likewise of captions [M, ... + v, d].
        `captions` is what a decoder makes of them and of their masked tokens, as in `BatchEncoder`.
        """

        def there(values: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Tensor:
            return sent(torch.from_numpy(np.ascontiguousarray(values)), image.device)

        views = None
        if count := self.views.shape[1]:
            image, views = image[:, :-count], image[:, -count:]
        texts = negative = None
        if count := self.text_views.shape[1]:
            text, texts = text[:, :-count], text[:, -count:]
        if self.has_negative is not None and texts is not None:
            texts, negative = texts[:, :-1], texts[:, -1]
        is_tokens = text.ndim == 3 and text.shape[1] > 1
        whole = (image[:, 0] if image.ndim == 3 else image, text[:, 0] if text.ndim == 3 else text)
        words = None
        if captions is not None and self.masked is not None:
            captions, words = captions[:, :-2], captions[:, -2:]
        decoded = captions if captions is not None and captions.shape[1] else None
        pairs = PairBatch(
            image=whole[0],
            text=whole[1],
            owner=there(self.chosen.owner),
            slot=there(self.chosen.slot),
            is_raw=there(self.chosen.is_raw),
            teacher_image=None if self.teacher_image is None else sent(self.teacher_image, image.device),
            teacher_text=None if self.teacher_text is None else sent(self.teacher_text, image.device),
            epoch=self.epoch,
            image_views=views,
            text_views=texts,
            negative_text=negative,
            has_negative=None if self.has_negative is None else sent(self.has_negative, image.device),
            samples=there(self.samples),
            word_losses=None if words is None else words[:, 0],
            word_counts=None if words is None else words[:, 1],
            caption_losses=None if decoded is None else decoded[:, 0],
            caption_lengths=None if decoded is None else decoded[:, 1],
        )
        if not is_tokens:
            return pairs
        mask = sent(token_mask(self.tokens), image.device)
        return replace(pairs, image_tokens=image[:, 1:], text_tokens=text[:, 1:], text_mask=mask)


def _loader_workers(resources: Resources, device: torch.device) -> int | None:
    """The number of processes that decode; None: as many as it is worth, if the images do not fit into memory."""
    if resources.loader_workers != "auto":
        return resources.loader_workers
    return None if device.type == "cuda" else 0


class BatchSource:
    """All batches of a run, from any step on. A function of the data, the spec and the seed.

    Each of `ranks` sees its own part of every global batch: the first gets the first images, and so on.

    Raises:
        DataError: the data has fewer samples than a batch, or an image too few captions.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        towers: Towers,
        features: TeacherFeatures | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.dataset, self.features = dataset, features
        self.batch_size = experiment.train.global_batch_size
        if dataset.epoch_samples < self.batch_size:
            what = f"the data has {dataset.epoch_samples} samples, fewer than one batch of {self.batch_size}"
            raise DataError(what, where="train.global_batch_size", fix="make the batch smaller")
        self._experiment = experiment
        self._part = slice(*(ranks or Ranks()).share(self.batch_size))
        self._tokenize = towers.tokenize
        check_available(
            experiment.captions,
            {source: dataset.caption_counts(source) for source in dataset.sources},
            dataset.keys if experiment.captions.count else (),
        )
        need = experiment.loss.momentum_need
        self._views = (experiment.loss.views_read, need.views if need else 0)
        self._images = ImageBatches(
            dataset,
            experiment.train.augment,
            image_size=towers.image_size,
            seed=experiment.seed,
            workers=_loader_workers(experiment.resources, towers.device),
            views=(experiment.train.views,) * max(self._views),
            pin=towers.device.type == "cuda",
        )
        self._images.check_shared_memory(self._part.stop - self._part.start)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the rest of its samples is left out, others each time."""
        return self.dataset.epoch_samples // self.batch_size

    def batches(self, first: int) -> Iterator[Batch]:
        """Batch after batch, without end, beginning with that of step `first`.

        With loader workers all of it happens beside the training, a few batches ahead.
        """
        batches = self._made(first)
        return prefetched(batches, AHEAD) if self._images.workers else batches

    def blank(self) -> Batch:
        """The first batch with black images, none of which is read."""
        _, everyone = next(self._planned(0))
        return self._batch(
            0, everyone, torch.zeros(self._part.stop - self._part.start, *self._images.shape, dtype=torch.uint8)
        )

    def _made(self, first: int) -> Iterator[Batch]:
        planned, wanted = tee(self._planned(first))
        for (step, everyone), images in zip(planned, self._images(self._drawn(wanted)), strict=False):
            yield self._batch(step, everyone, images)

    def _planned(self, first: int) -> Iterator[tuple[int, Ints]]:
        step = first
        while True:
            epoch, start = divmod(step, self.steps_per_epoch)
            order = self._order(epoch)
            for position in range(start, self.steps_per_epoch):
                yield step, order[position * self.batch_size : (position + 1) * self.batch_size]
                step += 1

    def _drawn(self, planned: Iterator[tuple[int, Ints]]) -> Iterator[tuple[int, Ints]]:
        return ((step // self.steps_per_epoch, everyone[self._part]) for step, everyone in planned)

    def _order(self, epoch: int) -> Ints:
        return orders(self._experiment.train.batches, self, self._experiment.seed, epoch)

    def _batch(self, step: int, everyone: Ints, images: Tensor) -> Batch:
        samples = everyone[self._part]
        chosen = self.chosen(step, samples)
        image, text = self.taught(samples, chosen)
        captions = self.texts(samples, chosen)
        tokens = self._tokenize(captions)
        views, has_negative, masked = self._edits(step, samples[chosen.owner], chosen, captions, tokens)
        every = images if images.ndim == 5 else images[:, None]
        return Batch(
            samples=samples,
            everyone=everyone,
            first=self._part.start,
            chosen=chosen,
            images=every[:, 0],
            tokens=tokens,
            text_views=views,
            has_negative=has_negative,
            masked=masked,
            views=every[:, 1 : 1 + self._views[0]],
            momentum_views=every[:, 1 : 1 + self._views[1]] if self._views[1] else None,
            epoch=step / self.steps_per_epoch,
            teacher_image=image,
            teacher_text=text,
        )

    def _edits(
        self, step: int, samples: Ints, chosen: Chosen, captions: list[str], tokens: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the loss reads of edited captions: tokens of further edits [M, v, L], which of the last are hard
        negatives [M], and `tokens` [M, L] with some masked [M, 2, L]. `samples` [M] are the captions'.

        An edit depends on seed, epoch, sample, caption and number of the view alone.
        """
        loss, train = self._experiment.loss, self._experiment.train
        if not (loss.text_views_read or loss.hard_negatives or loss.masked_share):
            return tokens.new_empty(len(captions), 0, 0), None, None
        purposes = zip(samples.tolist(), chosen.source.tolist(), chosen.position.tolist(), strict=True)
        keys = [(self._experiment.seed, step // self.steps_per_epoch, *one) for one in purposes]
        masked = masked_tokens(tokens, keys, loss.masked_share) if loss.masked_share else None
        columns = [edited_texts(train.text_views, captions, keys, view) for view in range(loss.text_views_read)]
        has_negative = None
        if loss.hard_negatives:
            found = hard_negatives(train.hard_negatives, captions, keys)
            has_negative = torch.tensor([one is not None for one in found])
            columns.append([text if one is None else one for text, one in zip(captions, found, strict=True)])
        edits = [self._tokenize(column, keep=False) for column in columns]
        views = torch.stack(edits, dim=1) if edits else tokens.new_empty(len(captions), 0, 0)
        return views, has_negative, masked

    def chosen(self, step: int, samples: Ints) -> Chosen:
        """The captions of samples [N] at `step`."""
        epoch = step // self.steps_per_epoch
        return choose_batch(self._experiment.captions, samples, seed=self._experiment.seed, epoch=epoch)

    def taught(self, samples: Ints, chosen: Chosen) -> tuple[Tensor | None, Tensor | None]:
        """The teacher's features of samples [N, e] and of their chosen captions [M, e]; None without a teacher."""
        if self.features is None:
            return None, None
        text = self.features.text(samples[chosen.owner], chosen.source, chosen.position)
        return self.features.image(samples), text

    def texts(self, samples: Ints, chosen: Chosen) -> list[str]:
        """The chosen captions [M] of samples [N], normalised as the spec says."""
        return texts(self._experiment.captions, self.dataset, samples, chosen)


orders: Registry[[BatchSource, int, int], Ints] = Registry("train.batches")
"""For each way of making batches, the order of all samples in an epoch, by source, seed and epoch: batches are cut
from it one after the other."""


@orders.register(RandomBatches)
def _random_order(_spec: RandomBatches, source: BatchSource, seed: int, epoch: int) -> Ints:
    return source.dataset.order(seed, epoch)


@orders.register(GroupedBatches)
def _grouped_order(spec: GroupedBatches, source: BatchSource, seed: int, epoch: int) -> Ints:
    if source.dataset.epoch_samples < len(source.dataset):
        what, fix = (
            "groups all samples, of which a weighted mixture visits a part",
            "leave out the weights of data.sources",
        )
        raise DataError(what, where='train.batches.kind = "grouped"', fix=fix)
    samples = np.arange(len(source.dataset))
    assert source.features is not None, "a spec that groups without a teacher does not validate"
    first = source.features.text(samples, np.full_like(samples, RAW), np.zeros_like(samples))
    return grouped_order(
        source.features.image(samples),
        first,
        batch_size=source.batch_size,
        search_space=spec.search_space,
        seed=seed,
        epoch=epoch,
    )


@orders.register(DebiasedBatches)
def _debiased_order(spec: DebiasedBatches, source: BatchSource, seed: int, epoch: int) -> Ints:
    sources = {name: one.samples for name, one in source.dataset.report.sources.items()}
    spec.check_sources(sources, source.batch_size)
    return debiased_order(source.dataset.proportions, source.batch_size, seed, epoch)
