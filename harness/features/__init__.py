"""A teacher's features of a data set, computed once per (data, teacher), stored, and shared by all runs.

    store/features/<data>-<teacher>/
        image.npy            [S, e] float16, unit rows
        captions-<digest>.npy        [U, e] float16, unit rows of the distinct captions of a source
        captions-<digest>.rows.npz   where each caption of each sample is among them

Features of captions are found by a digest of the captions, since another source may have the same name. Older code
named the files after their source, which does not say what they are of: they are left alone and not read.

Images are seen un-augmented, through the teacher's own evaluation transform (FFF, Section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from harness.base.errors import StoreError
from harness.base.locks import exclusive
from harness.base.log import say
from harness.config.captions import Captions
from harness.data.dataset.caption_choice import RAW
from harness.data.dataset.dataset import Dataset
from harness.features.compute import Extraction, Wanted
from harness.features.dedup import RAW_NAME
from harness.features.read import TeacherFeatures, read_features
from harness.models import Towers
from harness.runs.identity import digest

MOST_TIMES = 3
"""How often damaged features are computed again."""

__all__ = ["TeacherFeatures", "features_folder", "read_features", "teacher_features", "wanted_by"]


def teacher_features(
    folder: Path, dataset: Dataset, captions: Captions, teacher: Callable[[], Towers], device: torch.device
) -> TeacherFeatures:
    """The features of all images and of the captions that `captions` may choose. Computes missing and damaged ones.

    Args:
        folder: `features_folder` of this data set and teacher.
        teacher: builds the teacher's towers; called only when something is missing.

    Raises:
        ModelError: the teacher's features are not finite.
        StoreError: what is stored is damaged repeatedly, or the disk is full.
    """
    wanted = wanted_by(folder, dataset, captions)
    for _ in range(MOST_TIMES):
        with exclusive(folder / "lock", wait=True):
            while not wanted.is_done:  # repeat if a part on disk does not match what was written
                Extraction(wanted, teacher(), device).compute()
        damaged = wanted.reopen_damaged()  # without the lock: the processes of a run read at the same time
        for sentence in damaged:
            say(sentence)
        if not damaged:
            break
    else:
        raise StoreError("is damaged repeatedly", where=str(folder), fix="check the disk")
    return read_features(wanted, {RAW: RAW_NAME} | dict(enumerate(wanted.sources[1:])))


def wanted_by(folder: Path, dataset: Dataset, captions: Captions) -> Wanted:
    """The features that a run with these captions reads."""
    sources = captions.sources if captions.count else ()
    return Wanted(folder, dataset, (RAW_NAME, *sources), lower=captions.text == "lower")


def features_folder(root: Path, fingerprint: str, teacher: str) -> Path:
    """Folder of the features of one data set from one teacher."""
    return root / f"{fingerprint[:12]}-{digest(teacher)}"
