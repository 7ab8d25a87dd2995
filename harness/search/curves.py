"""Learning curves as weighted sums of parametric families, fitted to a few early evaluations.

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
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
POWERS = tuple(float(power) for power in np.geomspace(0.02, 5.0, 48))
"""Grid of c in POW3."""
RATES = tuple(float(rate) for rate in np.geomspace(0.02, 200.0, 64))
"""Grid of a in EXP3, in units of 1 / (the full length)."""
LEAST_VARIANCE = 1e-10
"""Of the residuals: curves without noise fit exactly."""


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
class Curve:
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


def fit(levels: Sequence[float], errors: Sequence[float], length: float) -> Curve:
    """The curve through observations.

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
    curve = Curve(families, weights, length, 0.0)
    residual = float(np.sqrt(np.mean((curve(x) - y) ** 2)))
    return Curve(families, weights, length, residual)


def _best(name: str, x: Array, y: Array, length: float) -> Family:
    """The least squares fit of a family: over its grid of shapes, the line in its regressor, kept from rising."""
    shapes = _shapes(name)
    regressors = _regressors(name, tuple(x.tolist()), length)
    centred = regressors - regressors.mean(1, keepdims=True)
    spread = (centred**2).sum(1)
    slopes = np.where(spread > 0, centred @ (y - y.mean()) / np.maximum(spread, 1e-300), 0.0)
    if name == "EXP3":  # exp(-a x + b) is positive: it can only fall
        slopes = np.maximum(slopes, 0.0)
    squares = ((y - y.mean() - slopes[:, None] * centred) ** 2).sum(1)
    best = int(np.argmin(squares))
    offset = float(y.mean() - slopes[best] * regressors[best].mean())
    return Family(name, offset, float(slopes[best]), shapes[best], float(squares[best]))


def _weights(families: Sequence[Family], count: int) -> tuple[float, ...]:
    """Likelihoods of the families under Gaussian noise of the best one's variance, as shares."""
    least = min(family.squares for family in families)
    variance = max(least / count, LEAST_VARIANCE)
    likelihoods = [math.exp(-(family.squares - least) / (2 * variance)) for family in families]
    return tuple(likelihood / sum(likelihoods) for likelihood in likelihoods)


def _shapes(name: str) -> tuple[float, ...]:
    return {"POW3": POWERS, "EXP3": RATES, "LOG2": (0.0,)}[name]


@lru_cache(maxsize=512)
def _regressors(name: str, levels: tuple[float, ...], length: float) -> Array:
    """The regressor of every shape at the levels, `[shapes, levels]`: runs are evaluated at the same points."""
    x = np.asarray(levels, float)
    return np.stack([_regressor(name)(x, shape, length) for shape in _shapes(name)])


def _values(family: Family, levels: Array, length: float) -> Array:
    return family.offset + family.slope * _regressor(family.name)(levels, family.shape, length)


def _regressor(name: str) -> Callable[[Array, float, float], Array]:
    return {"POW3": _power, "EXP3": _exponential, "LOG2": _logarithm}[name]


def _power(x: Array, shape: float, length: float) -> Array:
    return np.asarray((x / length) ** -shape, float)


def _exponential(x: Array, shape: float, length: float) -> Array:
    return np.asarray(np.exp(-shape * x / length), float)


def _logarithm(x: Array, shape: float, length: float) -> Array:  # noqa: ARG001
    return np.asarray(np.log(x / length), float)
