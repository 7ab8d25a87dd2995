"""Batches as mining sees them, with what a person needs to judge them: `harness preview`, and each run's gallery."""

from __future__ import annotations

from harness.batches import Batch, BatchSource
from harness.gallery import write_gallery
from harness.miner import Miner
from harness.mining.preview import PreviewBatch, gallery_of
from harness.store import RunFolder


def preview_batch(source: BatchSource, miner: Miner, batch: Batch) -> PreviewBatch:
    """`batch` with its pictures, its captions, and the truth where it is known."""
    dataset = source.dataset
    truth, informative = miner.truth_of(batch) or (None, None)
    return PreviewBatch(
        keys=[dataset.keys[sample] for sample in batch.samples],
        pictures=[dataset.image(sample) for sample in batch.samples.tolist()],
        captions=source.texts(batch.samples, batch.chosen),
        owner=batch.chosen.owner,
        mined=miner.mined(batch),
        truth=truth,
        informative=informative,
    )


def leave_gallery(folder: RunFolder, source: BatchSource, miner: Miner) -> None:
    """Write what mining finds in a run's first batch into its folder, for reports.

    Raises:
        StoreError: the folder cannot be written.
    """
    write_gallery(folder.gallery, gallery_of(preview_batch(source, miner, next(source.batches(0)))))
