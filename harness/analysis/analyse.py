"""Analysis of a data set with a teacher's features, on the whole set if it is small, otherwise on a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.analysis import measures
from harness.analysis.measures import Floats, Ints
from harness.config.mining import Quantile, ThresholdMining
from harness.features.compute import Wanted
from harness.features.dedup import RAW_NAME
from harness.features.read import SourceFeatures, source_features
from harness.features.resumable_array import open_array
from harness.mining import calibration_images, resolve_thresholds

NEIGHBOURS = 100
BATCH = 1000
QUANTILES = (0.9, 0.99, 0.999, 0.9999)
FFF = ThresholdMining(image_text=0.27, image_image=0.92, text_text=0.99, image_text_guard=0.24)
"""The paper's thresholds, for CLIP ViT-L/14."""
_MARGIN = 0.05


@dataclass(frozen=True)
class Options:
    """Sample sizes of the analysis. Smaller sets are used completely."""

    queries: int = 2000
    """Number of captions and images whose neighbours are searched among all."""
    samples: int = 100_000
    """Number of samples whose own captions are compared with their image."""
    batches: int = 10
    """Number of batches of 1,000 in which true captions are ranked."""
    calibration: int = 1024
    """Number of samples among which all pairs are scored for thresholds."""
    shown: int = 12
    """Number of entries in each gallery."""
    seed: int = 0


@dataclass
class OfSource:
    """Results for one caption source."""

    captions: int
    distinct: int
    nearest: Floats
    """Mean similarity of queried captions to their 100 nearest (Figure 2a)."""
    single: Floats
    """Similarity of images to their first caption (Figures 2b, 3b)."""
    mean: Floats
    """Similarity of images to the mean of their captions (Figure 3b)."""
    within: Floats
    """Mean similarity among the captions of an image (Figure 3a); empty if each has one."""
    frequencies: Ints
    """How often the 100 most common captions occur (Figure 2c)."""
    ranks: Ints
    """Rank of the true caption among those of 1,000 images, or of all if there are fewer (Figure 3c)."""
    near: Floats
    """Similarity of queried texts to the nearest other text."""
    quantiles: dict[float, dict[str, float]]
    """Thresholds by clause at each quantile level of foreign pairs."""
    passing: dict[str, float]
    """Share of foreign pairs above the paper's thresholds, by clause."""
    common: list[tuple[str, int]] = field(default_factory=list)
    """The most common captions."""
    ahead: list[tuple[int, str, list[tuple[str, float]]]] = field(default_factory=list)
    """Samples, their own caption, and captions of others that rank before it (Figure 5)."""


@dataclass
class Analysis:
    """Results of the analysis."""

    samples: int
    options: Options
    sources: dict[str, OfSource]
    near_images: Floats
    """Similarity of queried images to the nearest other image."""
    twins: list[tuple[int, int, float]]
    """Pairs of the most similar images."""
    worst: list[tuple[int, float]]
    """Samples with the lowest similarity of raw caption and image."""


def analyse(wanted: Wanted, options: Options, device: torch.device) -> Analysis:
    """Analyse the features of `wanted`, which must exist.

    Raises:
        StoreError: features are damaged.
        DataError: there are fewer than two samples, or a feature is not finite.
    """
    one = _Analyser(wanted, options, device)
    sources = {name: one.source(name) for name in wanted.sources}
    near, twins = one.image_neighbours()
    return Analysis(len(wanted.dataset), options, sources, near, twins, one.worst())


class _Analyser:
    def __init__(self, wanted: Wanted, options: Options, device: torch.device) -> None:
        self._wanted, self._options, self._device = wanted, options, device
        self._image = open_array(wanted.images, len(wanted.dataset))
        self._chosen = self._some(len(wanted.dataset), options.samples)

    def source(self, name: str) -> OfSource:
        found = source_features(self._wanted, name)
        counts = np.bincount(found.rows, minlength=len(found.features)).astype(np.int64)
        own = self._some(len(found.rows), self._options.queries)
        rows = found.rows[own].astype(np.int64)
        nearest = measures.nearest(found.features[rows], found.features, NEIGHBOURS + 1, self._device)
        single, mean, within = self._own(found)
        quantiles, passing = self._thresholds(found)
        return OfSource(
            captions=len(found.rows),
            distinct=len(found.features),
            nearest=measures.mean_of_nearest(nearest, counts, rows, NEIGHBOURS),
            single=single,
            mean=mean,
            within=within,
            frequencies=np.sort(counts)[::-1][:NEIGHBOURS],
            ranks=np.concatenate([measures.ranks(*pair) for _, *pair in self._batches(found)]),
            near=measures.nearest_other(nearest, rows)[0] if len(found.features) > 1 else np.empty(0),
            quantiles=quantiles,
            passing=passing,
            common=self._common(name, counts),
            ahead=self._ahead(name, found),
        )

    def image_neighbours(self) -> tuple[Floats, list[tuple[int, int, float]]]:
        own = self._some(len(self._image), self._options.queries)
        found = measures.nearest(self._image[own], self._image, 2, self._device)
        similarity, other = measures.nearest_other(found, own)
        pairs: dict[tuple[int, int], float] = {}
        for place in np.argsort(-similarity):
            pairs.setdefault((*sorted((int(own[place]), int(other[place]))),), float(similarity[place]))  # type: ignore[arg-type]
            if len(pairs) == self._options.shown:
                break
        return similarity, [(*pair, value) for pair, value in pairs.items()]

    def worst(self) -> list[tuple[int, float]]:
        single = self._own(source_features(self._wanted, RAW_NAME))[0]
        lowest = np.argsort(single)[: self._options.shown]
        return [(int(self._chosen[place]), float(single[place])) for place in lowest]

    def _own(self, found: SourceFeatures) -> tuple[Floats, Floats, Floats]:
        parts: list[tuple[Floats, Floats, Floats]] = []
        for part in measures.blocks(len(self._chosen), measures.BLOCK // 4):
            samples = self._chosen[part]
            captions, starts = self._captions(found, samples)
            single, mean = measures.with_image(self._images(samples), captions, starts)
            parts.append((single, mean, measures.within(captions, starts)))
        single, mean, within = (np.concatenate(values) for values in zip(*parts, strict=True))
        return single, mean, within

    def _batches(self, found: SourceFeatures) -> Iterator[tuple[Ints, Tensor, Tensor]]:
        """Samples, images and first captions of batches of 1,000 (of one smaller batch if there are fewer)."""
        total = len(self._image)
        size = min(BATCH, total)
        order = np.random.default_rng(self._options.seed).permutation(total)
        for batch in range(min(self._options.batches, total // size)):
            samples = np.sort(order[batch * size : (batch + 1) * size])
            first = found.rows[found.starts[samples]]
            yield samples, self._images(samples), measures.unit(found.features[first], self._device)

    def _thresholds(self, found: SourceFeatures) -> tuple[dict[float, dict[str, float]], dict[str, float]]:
        samples = calibration_images(len(self._image), self._options.calibration)
        image = self._images(samples)
        text, starts = self._captions(found, samples)
        owner = torch.from_numpy(np.repeat(np.arange(len(samples)), np.diff(starts))).to(self._device)
        quantiles = {}
        for level in QUANTILES:
            at = Quantile(quantile=level)
            spec = ThresholdMining(image_text=at, image_image=at, text_text=at)
            values = resolve_thresholds(spec, image, text, owner)
            named = {"image_text": values.image_text, "image_image": values.image_image, "text_text": values.text_text}
            quantiles[level] = {name: value for name, value in named.items() if value is not None}
        return quantiles, dict(resolve_thresholds(FFF, image, text, owner).passing)

    def _common(self, name: str, counts: Ints) -> list[tuple[str, int]]:
        most = np.argsort(-counts, kind="stable")[: self._options.shown]
        wanted = self._wanted
        texts = wanted.distinct(name).texts(wanted.dataset, name, wanted.lower, most.tolist())
        return [(text, int(count)) for text, count in zip(texts, counts[most], strict=True)]

    def _ahead(self, name: str, found: SourceFeatures) -> list[tuple[int, str, list[tuple[str, float]]]]:
        """Samples of the first batch, spread over the ranks, with up to three captions that rank before their own."""
        samples, image, text = next(self._batches(found))
        scores = image @ text.T
        own = scores.diagonal().unsqueeze(1)
        behind = torch.nonzero((scores > own + _MARGIN).any(dim=1)).squeeze(1).tolist()
        told = []
        for place in behind[:: max(1, len(behind) // self._options.shown)][: self._options.shown]:
            best = scores[place].topk(min(3, len(samples)))
            others = [
                (self._first(name, int(samples[other])), value)
                for value, other in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                if other != place
            ]
            told.append((int(samples[place]), self._first(name, int(samples[place])), others))
        return told

    def _first(self, name: str, sample: int) -> str:
        dataset = self._wanted.dataset
        return dataset.raw(sample) if name == RAW_NAME else dataset.pseudo(name, sample)[0]

    def _captions(self, found: SourceFeatures, samples: Ints) -> tuple[Tensor, Ints]:
        """Features of all captions of some samples, and the start index of each sample."""
        counts = found.starts[samples + 1] - found.starts[samples]
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        rows = found.rows[np.repeat(found.starts[samples], counts) + within]
        return measures.unit(found.features[rows], self._device), starts

    def _images(self, samples: Ints) -> Tensor:
        return measures.unit(self._image[samples], self._device)

    def _some(self, total: int, most: int) -> Ints:
        """All indices below `total`, or `most` of them drawn at random, ascending."""
        if total <= most:
            return np.arange(total)
        return np.sort(np.random.default_rng(self._options.seed).choice(total, most, replace=False))
