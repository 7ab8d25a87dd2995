"""Mining as a step of training: a batch's positives, and what a step logs about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.batches import Batch, BatchSource
from harness.captions import RAW, Chosen, choose_batch
from harness.data.truth import Truth
from harness.losses import PairBatch, Positives
from harness.mining import Mined, Thresholds, calibration_images, mine, resolve_thresholds, score
from harness.spec.captions import Captions
from harness.spec.mining import ThresholdMining

Ints = npt.NDArray[np.int64]


class Miner:
    """Finds the positives of batches with the teacher's features that they carry."""

    def __init__(self, thresholds: Thresholds, truth: Truth | None, captions: Captions) -> None:
        self.thresholds = thresholds
        self._truth, self._captions = truth, captions

    def __call__(self, pairs: PairBatch, batch: Batch) -> tuple[PairBatch, dict[str, float]]:
        """`pairs` with its positives, and what to log."""
        assert pairs.teacher_image is not None
        assert pairs.teacher_text is not None
        mined = mine(self.thresholds, pairs.teacher_image, pairs.teacher_text, pairs.owner)
        logs = mined.logs() | self._scored(mined, pairs.owner, batch)
        return replace(pairs, positives=Positives(mined.rows, mined.cols)), logs

    def _scored(self, mined: Mined, owner: Tensor, batch: Batch) -> dict[str, float]:
        """Precision and recall, where the truth is known."""
        if self._truth is None:
            return {}
        sources = truth_sources(self._truth, batch.chosen, self._captions)
        samples = batch.samples[batch.chosen.owner]
        matches, informative = self._truth.matches(batch.samples, samples, sources, batch.chosen.position)
        there = (torch.from_numpy(array).to(owner.device) for array in (matches, informative))
        return score(mined, next(there), owner, next(there))


def truth_sources(truth: Truth, chosen: Chosen, captions: Captions) -> Ints:
    """The source numbers of chosen captions [M] as `Truth.matches` takes them."""
    numbers = np.array([truth.source(name) for name in captions.sources] + [truth.source("raw")], dtype=np.int64)
    sources: Ints = numbers[np.where(chosen.source == RAW, len(numbers) - 1, chosen.source)]
    return sources


def build_miner(spec: ThresholdMining, source: BatchSource, captions: Captions) -> Miner:
    """The miner of a run: thresholds resolved on a fixed sample of its data, the same for every seed."""
    samples = calibration_images(len(source.dataset))
    chosen = choose_batch(captions, samples, seed=0, epoch=0)
    image, text = source.taught(samples, chosen)
    assert image is not None
    assert text is not None
    thresholds = resolve_thresholds(spec, image, text, torch.from_numpy(chosen.owner))
    return Miner(thresholds, source.dataset.truth, captions)
