"""A mining spec made absolute: its quantiles resolved on the teacher's scores, and the share of pairs each lets by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.base.errors import DataError, SpecError
from harness.config.mining import Quantile, ThresholdMining
from harness.mining.similarity import product, slices, tiles
from harness.mining.texts import CaptionTable, Reduction, TextScores

_PER_UNIT = 2**19
"""Bins of the score histogram per unit of cosine: a quantile is exact to 2e-6. Bins are centred on their multiples,
so that the scores of equal captions, 1 up to rounding, share one."""
_LIMIT = 1.0625
"""Largest magnitude of a score that has a bin of its own; features in half precision are not quite of unit length."""
_TILE = 2**22


@dataclass(frozen=True)
class Thresholds:
    """Absolute cosines (None: the clause is off) and the options of FFF Eq. 1.

    Attributes:
        passing: for each threshold that is on, the share of calibration pairs above it (one minus its quantile).
    """

    image_text: float | None = None
    image_image: float | None = None
    text_text: float | None = None
    image_text_guard: float | None = None
    text_text_reduction: Reduction = "mean"
    keep_ground_truth: bool = True
    drop_below: float | None = None
    passing: Mapping[str, float] = field(default_factory=dict)

    def logs(self) -> dict[str, float]:
        """What a run's steps and its record say about its thresholds: `<name>_threshold`, the cosine in use, and
        `<name>_passing`, the share of calibration pairs above it, of each that is on.
        """
        cosines = {
            "image_text": self.image_text,
            "image_image": self.image_image,
            "text_text": self.text_text,
            "image_text_guard": self.image_text_guard,
            "drop_below": self.drop_below,
        }
        in_use = {f"{name}_threshold": value for name, value in cosines.items() if value is not None}
        return in_use | {f"{name}_passing": share for name, share in self.passing.items()}


def calibration_images(total: int, count: int = 2048, seed: int = 0) -> npt.NDArray[np.int64]:
    """Which of `total` samples thresholds are resolved on: at most `count`, drawn at random, ascending. [S] int64."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def resolve_thresholds(spec: ThresholdMining, image: Tensor, text: Tensor, owner: Tensor) -> Thresholds:
    """`spec` in absolute cosines, from the scores of all calibration pairs.

    A calibration pair is an image with another image (image_image) or with another image's caption (all others); own
    pairs are left out, so that a quantile does not move with the batch size. The result depends on the arguments
    alone. Memory is bounded, whatever the number of pairs.

    Args:
        spec: the thresholds and options.
        image: the teacher's features of S sampled images (`calibration_images`), unit rows [S, e].
        text: the teacher's features of the captions that a batch of these images would hold, unit rows [T, e].
        owner: the image of every caption [T], int64 in [0, S).

    Raises:
        DataError: there are fewer than two images, or a feature is not finite.
        SpecError: the guard p1' comes out at or above p1.
    """
    _check(image, text)
    with torch.no_grad():
        scores = _fill(spec, image, text, owner)
    values: dict[str, float | None] = {}
    passing: dict[str, float] = {}
    for name, (kind, threshold) in _used(spec).items():
        cosine = scores[kind].quantile(threshold.quantile) if isinstance(threshold, Quantile) else threshold
        values[name], passing[name] = cosine, scores[kind].above(cosine)
    _check_guard(values)
    return Thresholds(
        image_text=values.get("image_text"),
        image_image=values.get("image_image"),
        text_text=values.get("text_text"),
        image_text_guard=values.get("image_text_guard"),
        text_text_reduction=spec.text_text_reduction,
        keep_ground_truth=spec.keep_ground_truth,
        drop_below=values.get("drop_below"),
        passing=passing,
    )


def _used(spec: ThresholdMining) -> dict[str, tuple[str, float | Quantile]]:
    """The thresholds that are on, each with the similarity that it is compared with."""
    fields = {
        "image_text": ("sit", spec.image_text),
        "image_image": ("sii", spec.image_image),
        "text_text": ("stt", spec.text_text),
        "image_text_guard": ("sit", spec.image_text_guard if spec.text_text != "off" else "off"),
        "drop_below": ("sit", spec.drop_below),
    }
    return {name: (kind, value) for name, (kind, value) in fields.items() if value != "off"}


class _Histogram:
    """Counts of scores in bins of 2e-6."""

    def __init__(self) -> None:
        self._counts = torch.zeros(2 * round(_LIMIT * _PER_UNIT) + 1, dtype=torch.int64)

    def add(self, scores: Tensor, left_out: Tensor) -> None:
        """Count `scores` [A, B] but for those where `left_out` [A, B] holds."""
        bins = scores.clamp(-_LIMIT, _LIMIT).add_(_LIMIT).mul_(_PER_UNIT).add_(0.5).int()
        size = len(self._counts)
        counts = torch.bincount(bins.flatten(), minlength=size) - torch.bincount(bins[left_out], minlength=size)
        self._counts += counts.cpu()

    def quantile(self, level: float) -> float:
        """The lowest bin border with at most the share 1 - level of the scores above it."""
        cumulative = self._counts.cumsum(0)
        position = int(torch.searchsorted(cumulative, level * float(cumulative[-1])))
        return (position + 0.5) / _PER_UNIT - _LIMIT

    def above(self, cosine: float) -> float:
        """Share of the scores in the bins above `cosine`."""
        first = max(0, ceil((cosine + _LIMIT) * _PER_UNIT + 0.5))
        return float(self._counts[first:].sum()) / float(self._counts.sum())


def _fill(spec: ThresholdMining, image: Tensor, text: Tensor, owner: Tensor) -> dict[str, _Histogram]:
    """Histograms of the scores that the thresholds of `spec` are compared with."""
    histograms = {kind: _Histogram() for kind, _ in _used(spec).values()}
    images, every = range(len(image)), torch.arange(len(image), device=owner.device)
    if "sii" in histograms:
        for rows, columns in map(slices, tiles(images, images, _TILE)):
            same = every[rows].unsqueeze(1) == every[columns]
            histograms["sii"].add(product(image[rows], image[columns]), same)
    stt = TextScores(text, owner, CaptionTable.of(owner, len(image)), spec.text_text_reduction)
    for rows, columns in map(slices, tiles(images, range(len(text)), _TILE)):
        same = every[rows].unsqueeze(1) == owner[columns]
        if "sit" in histograms:
            histograms["sit"].add(product(image[rows], text[columns]), same)
        if "stt" in histograms:
            histograms["stt"].add(stt.dense(rows, columns), same)
    return histograms


def _check(image: Tensor, text: Tensor) -> None:
    if len(image) < 2:
        raise DataError(
            "thresholds of the mining need the teacher's scores of at least two images",
            where="mining",
            fix="give more data or use absolute thresholds",
        )
    for name, features in (("image", image), ("text", text)):
        bad = int((~torch.isfinite(features).all(1)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(features)} {name} features of the teacher are not finite",
                where="teacher",
                fix="compute its features again",
            )


def _check_guard(values: dict[str, float | None]) -> None:
    guard, high = values.get("image_text_guard"), values.get("image_text")
    if guard is not None and high is not None and guard >= high:
        raise SpecError(
            f"on this data image_text_guard (p1') is {guard:.4f} and image_text (p1) {high:.4f}, so the text_text "
            "clause could never add a pair",
            where="mining",
            fix="lower image_text_guard or raise image_text",
        )
