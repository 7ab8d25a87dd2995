"""Mining as a step of training: a batch's positives, and what a step logs about them."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.config.captions import Captions
from harness.config.mining import MiningSpec
from harness.data.dataset.caption_choice import RAW, Chosen, choose_batch
from harness.data.synthetic.truth import Truth
from harness.losses import PairBatch, Positives
from harness.mining import Calibration, Mined, MiningRule, TruthRule, build_rule, calibration_images, score
from harness.models.transfer import sent
from harness.parallel.ranks import Ranks
from harness.training.batches import Batch, BatchSource

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Miner:
    """Finds the positives of batches with the teacher's features that they carry.

    Each of `ranks` mines for its own images among the captions of the whole batch.
    """

    def __init__(
        self, rule: MiningRule | TruthRule, truth: Truth | None, captions: Captions, ranks: Ranks | None = None
    ) -> None:
        self._rule = rule
        self._truth, self._captions = truth, captions
        self._ranks = ranks or Ranks()

    def __call__(self, pairs: PairBatch, batch: Batch) -> tuple[PairBatch, dict[str, float]]:
        """`pairs` with its positives, and what to log about the whole batch."""
        device = pairs.image.device
        there = replace(batch, teacher_image=pairs.teacher_image, teacher_text=pairs.teacher_text)
        truth = self.truth_of(batch, device)
        mined = self._mined(there, device, truth)
        whole = self._gathered(mined, batch)
        logs = whole.logs() | (self._rule.logs() if isinstance(self._rule, MiningRule) else {})
        if truth is not None:
            matches, informative = (sent(torch.from_numpy(mask), device) for mask in truth)
            logs |= score(whole, matches, self._owner(batch, device), informative)
        return replace(pairs, positives=Positives(mined.local_rows, mined.cols)), logs

    def alone(self) -> Miner:
        """The same miner for a batch that no other rank has a part of."""
        return Miner(self._rule, self._truth, self._captions)

    def mined(self, batch: Batch, device: torch.device | str = "cpu") -> Mined:
        """The positives of a rank's images, counted in the whole batch."""
        return self._mined(batch, device, self.truth_of(batch, device) if isinstance(self._rule, TruthRule) else None)

    def _mined(self, batch: Batch, device: torch.device | str, truth: tuple[Mask, Mask] | None) -> Mined:
        gather = self._ranks.all_gather
        images, owner = range(batch.first, batch.first + len(batch.samples)), self._owner(batch, device)
        if isinstance(self._rule, TruthRule):
            assert truth is not None, "a spec that mines by a truth that nobody knows does not validate"
            return self._rule.mine(*truth, owner, images, zlib.crc32(batch.everyone.tobytes()))
        image, text = gather(_there(batch.teacher_image, device)), gather(_there(batch.teacher_text, device))
        return self._rule.mine(image, text, owner, images)

    def truth_of(self, batch: Batch, device: torch.device | str = "cpu") -> tuple[Mask, Mask] | None:
        """Which captions hold for which images [N, M], and which say anything [M], of the whole batch; None where
        nobody knows. `device` is the one that the ranks' group takes.
        """
        if self._truth is None:
            return None
        owner, sources, position = (
            values
            if self._ranks.size == 1
            else self._ranks.all_gather(torch.from_numpy(values).to(device)).cpu().numpy()
            for values in (
                batch.chosen.owner + batch.first,
                truth_sources(self._truth, batch.chosen, self._captions),
                batch.chosen.position,
            )
        )
        return self._truth.matches(batch.everyone, batch.everyone[owner], sources, position)

    def _owner(self, batch: Batch, device: torch.device | str) -> Tensor:
        """The image of every caption of the whole batch [M]."""
        return self._ranks.all_gather(sent(torch.from_numpy(batch.chosen.owner + batch.first), device))

    def _gathered(self, mined: Mined, batch: Batch) -> Mined:
        """What all ranks found."""
        if self._ranks.size == 1:
            return mined
        rows, cols, clause = (self._ranks.all_gather_ragged(part) for part in (mined.rows, mined.cols, mined.clause))
        return Mined(rows, cols, clause, images=range(len(batch.everyone)), captions=mined.captions * self._ranks.size)


def truth_sources(truth: Truth, chosen: Chosen, captions: Captions) -> Ints:
    """The source numbers of chosen captions [M] as `Truth.matches` takes them."""
    numbers = np.array([truth.source(name) for name in captions.sources] + [truth.source("raw")], dtype=np.int64)
    sources: Ints = numbers[np.where(chosen.source == RAW, len(numbers) - 1, chosen.source)]
    return sources


def build_miner(spec: MiningSpec, source: BatchSource, captions: Captions, ranks: Ranks | None = None) -> Miner | None:
    """The miner of a run, calibrated on a fixed sample of its data, the same for every seed; None without mining.

    Raises:
        SpecError: no code mines by `spec`, or it contradicts itself on this data.
    """

    def calibration() -> Calibration:
        samples = calibration_images(len(source.dataset))
        chosen = choose_batch(captions, samples, seed=0, epoch=0)
        image, text = source.taught(samples, chosen)
        return Calibration(_there(image), _there(text), torch.from_numpy(chosen.owner))

    rule = build_rule(spec, calibration)
    return None if rule is None else Miner(rule, source.dataset.truth, captions, ranks)


def _there(features: Tensor | None, device: torch.device | str = "cpu") -> Tensor:
    assert features is not None, "a spec that mines without a teacher does not validate"
    return sent(features, device)
