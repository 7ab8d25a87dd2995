"""Which captions of each image a batch holds, decided by seed, epoch and sample index alone.

Nothing else enters a choice: not the order of the samples, the batch they are in, the worker or the rank. So a run
that was killed and resumed, or runs on another number of GPUs, sees the same captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from harness.base.errors import DataError
from harness.config.captions import Captions

RAW = -1
"""Source number of the raw caption."""

_Ints = npt.NDArray[np.int64]
_STREAM = 0x63617074696F6E73
"""Sets these draws apart from others made with the same seed ("captions")."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Chosen:
    """The captions of a batch, image by image.

    Attributes:
        owner: position in the batch of the image that a caption belongs to [M] int64, ascending.
        source: number of its source in `Captions.sources` [M] int64, RAW for the raw caption.
        position: which caption of that source it is [M] int64.
        slot: its place among the captions of its image in this batch [M] int64, 0 to per_image - 1.
    """

    owner: _Ints
    source: _Ints
    position: _Ints
    slot: _Ints

    @property
    def is_raw(self) -> npt.NDArray[np.bool_]:
        """Whether a caption is its image's raw one [M]."""
        return np.equal(self.source, RAW)


def choose_batch(spec: Captions, samples: npt.ArrayLike, *, seed: int, epoch: int) -> Chosen:
    """The captions of the samples with these indices in the data set [N], for their visit in `epoch`."""
    indices = np.asarray(samples, dtype=np.int64)
    per_image = spec.per_image
    if spec.mixing == "all":
        entry = np.tile(np.arange(per_image) - spec.raw, len(indices))
    else:
        entry = _draw(spec, indices, seed, epoch)
    turns = max(1, len(spec.sources))
    return Chosen(
        owner=np.repeat(np.arange(len(indices)), per_image),
        source=np.where(entry < 0, RAW, entry % turns),
        position=np.where(entry < 0, 0, entry // turns),
        slot=np.tile(np.arange(per_image), len(indices)),
    )


class CaptionTexts(Protocol):
    """The captions of a data set by sample number, as `Dataset` has them."""

    def raw(self, i: int) -> str:
        """The raw caption of sample `i`."""

    def pseudo(self, source: str, i: int) -> Sequence[str]:
        """The pseudo-captions of sample `i` from `source`."""


def texts(spec: Captions, data: CaptionTexts, samples: _Ints, chosen: Chosen) -> list[str]:
    """The chosen captions [M] of samples [N] of `data`, normalised as `spec` says."""
    picked = [
        data.raw(sample) if source == RAW else data.pseudo(spec.sources[source], sample)[position]
        for sample, source, position in zip(
            samples[chosen.owner].tolist(), chosen.source.tolist(), chosen.position.tolist(), strict=True
        )
    ]
    match spec.text:
        case "none":
            return picked
        case "lower":
            return [text.lower() for text in picked]


def check_available(spec: Captions, available: Mapping[str, npt.ArrayLike], keys: Sequence[str]) -> None:
    """Make sure that every sample has the pseudo-captions that `spec` may choose.

    Args:
        spec: how many captions of which sources are used.
        available: captions of every sample, by source [S].
        keys: names of the samples [S].

    Raises:
        DataError: a source is unknown, or a sample has too few captions of it; names the first one.
    """
    for source, needed in spec.needed().items():
        if source not in available:
            raise DataError(
                f"the data has no pseudo-captions of {source!r}",
                where="captions.source",
                fix=f"use one of: {', '.join(sorted(available)) or 'none, so set captions.count = 0'}",
            )
        counts = np.asarray(available[source])
        short = np.flatnonzero(counts < needed)
        if len(short):
            raise DataError(
                f"{len(short)} of {len(counts)} samples have fewer than the {needed} captions of {source!r} that "
                f"captions.count = {spec.count} needs (this one has {counts[short[0]]})",
                where=keys[short[0]],
                fix="lower captions.count, caption them, or leave these samples out of the data",
            )


def _draw(spec: Captions, samples: _Ints, seed: int, epoch: int) -> _Ints:
    """One entry per sample [N]: -1 for the raw caption, else 0 to count - 1 for a pseudo-caption."""
    is_pseudo = _uniform(samples, seed, epoch, draw=0) < spec.share
    entry = np.floor(_uniform(samples, seed, epoch, draw=1) * spec.count).astype(np.int64)
    return np.where(is_pseudo, entry, -1)


def _uniform(samples: _Ints, seed: int, epoch: int, draw: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) that depend on (sample, seed, epoch, draw) alone [N]."""
    state = np.full(len(samples), _STREAM, dtype=np.uint64)
    for word in (seed % 2**64, epoch, draw):
        state = _mix(state + np.uint64(word))
    return (_mix(state + samples.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
