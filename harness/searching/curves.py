"""Fit learning curves, weighted sums of parametric families, to a few early evaluations.

Source: Jiang et al., "Efficient Hyperparameter Optimization with Adaptive Fidelity Identification", CVPR 2024 (FastBO),
Table 1 and Eqs. 1 and 2; the families are from Viering and Loog, "The Shape of Learning Curves" (2022).

    POW3  y = d + a x^-c        EXP3  y = d + exp(-a x + b)        LOG2  y = d + a log(x)

The paper fits the twelve parameters of the weighted sum at once by maximum likelihood, on about ten observations: most
of these fits are not determined. Here each family is fitted alone (its shape on a grid, the rest in closed form: with
the shape fixed all three are a line in one regressor), and weighted by its likelihood under Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SHAPES: dict[str, Array] = {
    "POW3": np.geomspace(0.02, 5.0, 32),
    "EXP3": np.geomspace(0.02, 200.0, 40),
    "LOG2": np.ones(1),
}
"""Grids of c in POW3 and of a in EXP3, the latter in units of 1 / (the full length)."""
FINER, REFINEMENTS = 12, 2
"""Number of points of each finer grid around the best shape, and number of refinements."""
LEAST_VARIANCE = 1e-10
"""Lower bound of the residuals' variance, because curves without noise fit exactly."""


@dataclass(frozen=True)
class Family:
    """One fitted family: y = offset + slope * regressor(r)."""

    name: str
    offset: float
    slope: float
    shape: float
    """c of POW3, a of EXP3; unused by LOG2."""
    squares: float
    """Sum of squared residuals."""


@dataclass(frozen=True)
class FittedCurve:
    """A fitted learning curve C(r) of errors (lower is better) over resource levels r."""

    families: tuple[Family, ...]
    weights: tuple[float, ...]
    length: float
    """The full length, in the units of r."""
    residual: float
    """Root mean square of observations minus curve."""

    def __call__(self, levels: Array) -> Array:
        """C at resource levels `[n]`, as `[n]`."""
        total = np.zeros_like(levels, dtype=float)
        for family, weight in zip(self.families, self.weights, strict=True):
            total += weight * _values(family, levels, self.length)
        return total


def fit(levels: Sequence[float], errors: Sequence[float], length: float) -> FittedCurve:
    """Fit a curve to observations.

    Args:
        levels: resource levels, ascending and above 0.
        errors: the error at each.
        length: the full length, in the same units.

    Raises:
        ValueError: there are fewer than two observations.
    """
    if len(levels) < 2:
        raise ValueError("a curve needs two observations or more")
    x, y = np.asarray(levels, float), np.asarray(errors, float)
    families = tuple(_best(name, x, y, length) for name in ("POW3", "EXP3", "LOG2"))
    weights = _weights(families, len(x))
    curve = FittedCurve(families, weights, length, 0.0)
    residual = float(np.sqrt(np.mean((curve(x) - y) ** 2)))
    return FittedCurve(families, weights, length, residual)


def _best(name: str, x: Array, y: Array, length: float) -> Family:
    """Fit a family by least squares: search the grid of its shapes, then twice a finer grid around the best."""
    shapes = SHAPES[name]
    squares, best = _on_grid(name, x, y, shapes, length)
    for _ in range(REFINEMENTS if len(shapes) > 1 else 0):
        low, high = shapes[max(best.place - 1, 0)], shapes[min(best.place + 1, len(shapes) - 1)]
        shapes = np.geomspace(low, high, FINER)
        squares, best = _on_grid(name, x, y, shapes, length)
    return Family(name, best.offset, best.slope, float(shapes[best.place]), squares)


@dataclass(frozen=True)
class _Line:
    """The best line of a grid of shapes."""

    place: int
    offset: float
    slope: float


def _on_grid(name: str, x: Array, y: Array, shapes: Array, length: float) -> tuple[float, _Line]:
    """The sum of squares and the line of the best shape. With its shape fixed, a family is a line in its regressor."""
    regressors = _regressor(name)(x[None], shapes[:, None], length)
    centred = regressors - regressors.mean(1, keepdims=True)
    spread = (centred**2).sum(1)
    slopes = np.where(spread > 0, centred @ (y - y.mean()) / np.maximum(spread, 1e-300), 0.0)
    if name == "EXP3":  # exp(-a x + b) is positive, so the curve can only fall
        slopes = np.maximum(slopes, 0.0)
    squares = ((y - y.mean() - slopes[:, None] * centred) ** 2).sum(1)
    place = int(np.argmin(squares))
    line = _Line(place, float(y.mean() - slopes[place] * regressors[place].mean()), float(slopes[place]))
    return float(squares[place]), line


def _weights(families: Sequence[Family], count: int) -> tuple[float, ...]:
    """Likelihoods of the families under Gaussian noise of the best one's variance, as shares."""
    least = min(family.squares for family in families)
    variance = max(least / count, LEAST_VARIANCE)
    likelihoods = [math.exp(-(family.squares - least) / (2 * variance)) for family in families]
    return tuple(likelihood / sum(likelihoods) for likelihood in likelihoods)


def _values(family: Family, levels: Array, length: float) -> Array:
    return family.offset + family.slope * _regressor(family.name)(levels, family.shape, length)


def _regressor(name: str) -> Callable[[Array, Array | float, float], Array]:
    return {"POW3": _power, "EXP3": _exponential, "LOG2": _logarithm}[name]


def _power(x: Array, shape: Array | float, length: float) -> Array:
    return np.asarray((x / length) ** -shape, float)


def _exponential(x: Array, shape: Array | float, length: float) -> Array:
    return np.asarray(np.exp(-shape * x / length), float)


def _logarithm(x: Array, shape: Array | float, length: float) -> Array:  # noqa: ARG001
    return np.asarray(np.log(x / length), float)
