"""Effective robustness: accuracy under a distribution shift beyond what a baseline's accuracies predict.

Taori et al. (2020), "Measuring Robustness to Natural Distribution Shifts in Image Classification", section 3: of a
model with accuracies `here` in and `there` out of distribution it is `there - beta(here)`, where beta is fitted to
models trained in the standard way. Their fit, like CLIP's (Radford et al. 2021, section 3.3), is a line between logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BaselineFit:
    """logit(there) = slope * logit(here) + intercept, by least squares over models."""

    slope: float
    intercept: float
    models: int
    lowest: float
    """Of the models' accuracies in distribution, 0 to 1."""
    highest: float
    residual: float
    """Root mean square of there - expected(here) over the models, 0 to 1."""

    def expected(self, here: float) -> float:
        """The accuracy out of distribution, 0 to 1, that the baseline's models would have.

        Raises:
            ValueError: `here` is 0 or 1.
        """
        return 0.5 + 0.5 * math.tanh((self.slope * _logit(here) + self.intercept) / 2)  # the logistic function


def fit_baseline(accuracies: Sequence[tuple[float, float]]) -> BaselineFit:
    """The fit to models with accuracies (here, there), each between 0 and 1.

    Raises:
        ValueError: fewer than two models differ in their accuracy in distribution, or an accuracy is 0 or 1.
    """
    points = [(_logit(here), _logit(there)) for here, there in accuracies]
    if len({x for x, _ in points}) < 2:
        raise ValueError("fewer than two models with different accuracies")
    mean_x, mean_y = (math.fsum(side) / len(points) for side in zip(*points, strict=True))
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    line = BaselineFit(slope, mean_y - slope * mean_x, len(points), 0, 0, 0)
    squares = [(there - line.expected(here)) ** 2 for here, there in accuracies]
    heres = [here for here, _ in accuracies]
    residual = math.sqrt(math.fsum(squares) / len(squares))
    return BaselineFit(line.slope, line.intercept, line.models, min(heres), max(heres), residual)


def _logit(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"an accuracy of {share:.0%} has no logit")
    return math.log(share / (1 - share))
