"""The geometry of image and caption features on the unit sphere, in float64.

Sources: Liang et al. (2022), "Mind the Gap", section 4.1 (gap); Wang and Isola (2020), "Understanding Contrastive
Representation Learning through Alignment and Uniformity on the Hypersphere", section 4.1 (alignment with alpha = 2,
uniformity with t = 2). Lower is better for alignment and uniformity; the gap has no better direction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.metrics import Index

Features = NDArray[np.float64]
ROWS_AT_ONCE = 1024
TEMPERATURE = 2.0


def modality_gap(images: Features, captions: Features) -> float:
    """Euclidean distance between the mean of the images [N, d] and that of the captions [M, d]: 0 to 2."""
    return float(np.linalg.norm(images.mean(axis=0) - captions.mean(axis=0)))


def squared_distances(images: Features, captions: Features, owner: Index) -> Features:
    """[M] squared distance of each caption [M, d] to its image, `owner` [M] of images [N, d]: 0 to 4."""
    found: Features = np.square(images[owner] - captions).sum(axis=1)
    return found


def uniformity(features: Features) -> float | None:
    """log of the mean of exp(-2 |x - y|^2) over the pairs of n features [n, d]: -8 to 0; None for fewer than two.

    In blocks of rows, so that the n x n distances are never held.
    """
    count = len(features)
    if count < 2:
        return None
    norms, total = np.square(features).sum(axis=1), 0.0
    for start in range(0, count, ROWS_AT_ONCE):
        rows, others = features[start : start + ROWS_AT_ONCE], features[start:]
        squared = norms[start : start + len(rows), None] + norms[None, start:] - 2 * rows @ others.T
        total += float(np.triu(np.exp(-TEMPERATURE * squared), k=1).sum())  # each pair once, none with itself
    return float(np.log(total / (count * (count - 1) / 2)))
