"""Batches as mining sees them, with what a person needs to judge them: `harness preview`, and each run's gallery."""

from __future__ import annotations

from contextlib import suppress

import torch
from pydantic import ValidationError

from harness.base.errors import HarnessError
from harness.config.experiment import Experiment
from harness.config.overrides import laid_over
from harness.data.dataset.dataset import Dataset
from harness.mining.preview import PreviewBatch, gallery_of
from harness.models import Towers
from harness.node.teacher_features import features_for
from harness.runs.folder import RunFolder
from harness.runs.gallery import write_gallery
from harness.runs.request import Request
from harness.training.batches import Batch, BatchSource
from harness.training.mining_step import Miner, build_miner

MOST_IMAGES = 256
"""Of a batch that is mined for a gallery: its pictures are all decoded."""


def mining_of(
    request: Request, experiment: Experiment, dataset: Dataset, fingerprint: str, towers: Towers
) -> tuple[BatchSource, Miner]:
    """The batches of `experiment`, which mines, and its miner, in this process alone."""
    features = features_for(request, dataset, fingerprint, torch.device("cpu"))
    source = BatchSource(experiment, dataset, towers, features)
    miner = build_miner(experiment.mining, source, experiment.captions)
    assert miner is not None, "only an experiment that mines has a preview"
    return source, miner


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


def leave_gallery(request: Request, dataset: Dataset, fingerprint: str, towers: Towers, folder: RunFolder) -> None:
    """Write what mining finds in a batch into the run's folder, for reports. No run is lost for want of a gallery."""
    experiment = request.experiment
    if not experiment.mining.mines:
        return
    with suppress(HarnessError, ValidationError):
        if experiment.train.global_batch_size > MOST_IMAGES:
            experiment = laid_over(experiment, {"train": {"global_batch_size": MOST_IMAGES}})
        source, miner = mining_of(request, experiment, dataset, fingerprint, towers)
        write_gallery(folder.gallery, gallery_of(preview_batch(source, miner, next(source.batches(0)))))
