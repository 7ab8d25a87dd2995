"""A Gaussian process over configurations with expected improvement. A suggestion takes milliseconds and depends only
on the observations and the seed.

Optuna's GPSampler takes half a second per suggestion at 40 configurations, and fits finished trials only. The policies
here give the process values that change (forecasts), and the benchmark asks for tens of thousands of suggestions.
Searches with several objectives use Optuna's sampler. Sources: Rasmussen and Williams 2006 (Alg. 2.1, Eq. 5.9); Matern
5/2 with one length scale per dimension as in Snoek et al. 2012; expected improvement of Jones et al. 1998. Losses are
converted to normal scores (Salinas et al. 2020), so that one diverged run does not flatten the differences between all
others. Pending configurations count with their posterior mean (Ginsbourger et al. 2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, special, stats

from harness.config.axes import level_name
from harness.config.search import Choice, FloatRange, IntRange, Parameter
from harness.searching.samplers import at, bounds

Array = NDArray[np.float64]
Space = Mapping[str, Parameter]
CANDIDATES = 512
NEAR = 256
"""Number of candidates near the `BEST` best configurations."""
BEST = 5
FITTED = 64
"""Maximum number of configurations for fitting hyperparameters: the best ones and a random draw of the others."""
_LOG_LENGTH = (np.log(0.05), np.log(20.0))
_LOG_NOISE = (np.log(1e-4), np.log(1.0))
_LOG_SCALE = (np.log(0.05), np.log(20.0))


@dataclass(frozen=True)
class Process:
    """A fitted process: zero mean, Matern 5/2."""

    points: Array
    """`[n, d]`, in the unit cube."""
    lengths: Array
    """`[d]`."""
    scale: float
    """Variance of the function."""
    noise: float
    """Variance of an observation."""
    factor: Array
    """Lower Cholesky factor of the observations' covariance, `[n, n]`."""
    weights: Array
    """Covariance^-1 @ observations, `[n]`."""

    @classmethod
    def at(cls, points: Array, values: Array, lengths: Array, scale: float, noise: float) -> Process:
        """The process with given hyperparameters."""
        # Everything is solved through one Cholesky factor of K + noise I (Rasmussen and Williams, Alg. 2.1). An
        # explicit inverse would lose digits where configurations are close together, as they become in a search.
        # The noise on the diagonal is also what keeps the factor defined when two configurations are equal.
        covariance = scale * matern(points, points, lengths) + noise * np.eye(len(points))
        factor = np.asarray(linalg.cholesky(covariance, lower=True), float)
        weights = np.asarray(linalg.cho_solve((factor, True), values), float)
        return cls(points, lengths, scale, noise, factor, weights)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the function at `[m, d]`, `[m]` each."""
        cross = self.scale * matern(points, self.points, self.lengths)
        half = linalg.solve_triangular(self.factor, cross.T, lower=True)
        variance = np.maximum(self.scale - (half**2).sum(0), 1e-12)
        return cross @ self.weights, np.sqrt(variance)


def matern(left: Array, right: Array, lengths: Array) -> Array:
    """Matern 5/2 correlations of `[n, d]` and `[m, d]`, `[n, m]`."""
    a, b = left / lengths, right / lengths
    squares = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    distance = np.sqrt(5 * squares)
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance), float)


def fit(points: Array, values: Array, seed: int) -> Process:
    """Fit a process by maximising the posterior density of its hyperparameters.

    Priors keep the hyperparameters moderate when there are few observations.
    """
    generator = np.random.default_rng(seed)
    chosen = np.arange(len(points))
    if len(points) > FITTED:
        order = np.argsort(values, kind="stable")
        others = generator.choice(order[FITTED // 3 :], FITTED - FITTED // 3, replace=False)
        chosen = np.concatenate([order[: FITTED // 3], others])
    dimensions = points.shape[1]
    # Logs make all hyperparameters positive and their scales comparable for L-BFGS. With ten observations the
    # likelihood alone often calls everything noise, or one dimension all that matters. The log-normal priors in
    # `_loss` pull length scales towards 0.7 of the unit cube and noise towards 5 %; 20 iterations suffice from there.
    start = np.concatenate([np.full(dimensions, np.log(0.5)), [0.0, np.log(0.05)]])
    bounds = [_LOG_LENGTH] * dimensions + [_LOG_SCALE, _LOG_NOISE]
    found = optimize.minimize(
        _loss, start, (points[chosen], values[chosen]), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 20},
    )  # fmt: skip
    lengths, (scale, noise) = np.exp(found.x[:-2]), np.exp(found.x[-2:])
    return Process.at(points, values, lengths, float(scale), float(noise))


def _loss(theta: Array, points: Array, values: Array) -> tuple[float, Array]:
    """Negative log posterior of log hyperparameters and its gradient (Rasmussen and Williams, Eq. 5.9)."""
    count, dimensions = points.shape
    lengths, scale, noise = np.exp(theta[:dimensions]), float(np.exp(theta[-2])), float(np.exp(theta[-1]))
    differences = ((points[:, None] - points[None]) / lengths) ** 2
    distance = np.sqrt(5 * differences.sum(-1))
    decay = np.exp(-distance)
    kernel = scale * (1 + distance + distance**2 / 3) * decay
    factor = linalg.cholesky(kernel + (noise + 1e-8) * np.eye(count), lower=True)
    weights = linalg.cho_solve((factor, True), values)
    inverse = linalg.cho_solve((factor, True), np.eye(count))
    # With alpha = K^-1 y the gradient of the log likelihood is 1/2 tr((alpha alpha^T - K^-1) dK/dtheta) (Eq. 5.9). The
    # trace of a product is the sum over elements, so no matrix product is needed; thetas are logs, so dK/d log scale is
    # the kernel itself and dK/d log noise is noise I.
    inner = np.outer(weights, weights) - inverse
    slope = scale * (5 / 3) * (1 + distance) * decay  # d kernel / d log length_k = slope * differences_k
    gradient = np.empty_like(theta)
    gradient[:dimensions] = -0.5 * np.einsum("ij,ij,ijk->k", inner, slope, differences)
    gradient[-2] = -0.5 * float((inner * kernel).sum())
    gradient[-1] = -0.5 * noise * float(np.trace(inner))
    value = 0.5 * float(values @ weights) + float(np.log(np.diag(factor)).sum())
    prior = theta - np.concatenate([np.full(dimensions, np.log(0.7)), [0.0, np.log(0.05)]])
    width = np.concatenate([np.full(dimensions, 1.2), [1.0, 1.5]])
    return value + 0.5 * float(((prior / width) ** 2).sum()), gradient + prior / width**2


def suggest(
    space: Space,
    observed: Sequence[tuple[Mapping[str, Any], float]],
    pending: Sequence[Mapping[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """The configuration with the highest expected improvement.

    Args:
        observed: configurations and their losses (lower is better), two or more.
        pending: configurations in training without a loss yet.
    """
    generator = np.random.default_rng(seed)
    points = encode(space, [values for values, _ in observed])
    scores = normal_scores(np.array([loss for _, loss in observed]))
    process = fit(points, scores, seed)
    # Several configurations train at once. One that is pending counts as observed at its predicted mean: the mean stays
    # as it is, the deviation there shrinks, and so its neighbourhood is not proposed twice. Hyperparameters are kept,
    # because invented observations must not be fitted.
    if pending:
        waiting = encode(space, pending)
        believed, _ = process.predict(waiting)
        points, scores = np.concatenate([points, waiting]), np.concatenate([scores, believed])
        process = Process.at(points, scores, process.lengths, process.scale, process.noise)
    best_first = np.argsort(scores[: len(observed)], kind="stable")[:BEST]
    shares = _candidates(space, [observed[place][0] for place in best_first], generator)
    places = _coordinates(space, shares)
    mean, deviation = process.predict(places)
    best = float(process.predict(points)[0].min())
    improvement = np.where(_are_among(places, points), -np.inf, log_improvement(best - mean, deviation))
    chosen = shares[int(np.argmax(improvement))]
    return {path: _value(parameter, share) for (path, parameter), share in zip(space.items(), chosen, strict=True)}


def _are_among(places: Array, points: Array) -> NDArray[np.bool_]:
    """Which places equal one of `points`. They are excluded: the same configuration would be the same run."""
    known = {tuple(point) for point in np.round(points, 9).tolist()}
    return np.array([tuple(place) in known for place in np.round(places, 9).tolist()])


def log_improvement(gain: Array, deviation: Array) -> Array:
    """Log of the expected improvement, where `gain` is the best value minus the mean."""
    z = gain / deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    plain = density + z * special.ndtr(z)
    # For z far below zero, the two terms cancel and lose all digits; there, density / z^2 approximates their sum.
    far = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - 2 * np.log(np.maximum(-z, 1.0))
    safe = np.log(np.maximum(plain, 1e-300))
    return np.asarray(np.log(deviation) + np.where(z > -6, safe, far), float)


def normal_scores(losses: Array) -> Array:
    """Replace losses by the quantiles of a normal distribution at their ranks; ties get the same score."""
    ranks = stats.rankdata(losses)
    return np.asarray(stats.norm.ppf((ranks - 0.5) / len(losses)), float)


def encode(space: Space, configurations: Sequence[Mapping[str, Any]]) -> Array:
    """Map configurations to points of the unit cube, `[n, d]`; a choice has one dimension per value."""
    columns: list[Array] = []
    for path, parameter in space.items():
        values = [one[path] for one in configurations]
        if isinstance(parameter, Choice):
            names = [level_name(value) for value in values]
            columns += [np.array([float(name == level) for name in names]) for level in parameter.names]
        else:
            columns.append(_scaled(parameter, np.array(values, float)))
    return np.stack(columns, 1)


def _scaled(parameter: FloatRange | IntRange, values: Array) -> Array:
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
    return np.asarray((values - low) / (high - low), float)


def _candidates(space: Space, best: Sequence[Mapping[str, Any]], generator: np.random.Generator) -> Array:
    """Candidates as shares of the ranges, `[n, parameters]`: random ones, and the best with some values changed."""
    anywhere = generator.random((CANDIDATES + NEAR, len(space)))
    centres = np.array([[_share(p, one[path]) for path, p in space.items()] for one in best])
    around = centres[np.arange(NEAR) % len(best)]
    width = 10 ** generator.uniform(-2, -0.5, (NEAR, 1))
    choices = np.array([isinstance(parameter, Choice) for parameter in space.values()])
    moved = np.where(choices, anywhere[CANDIDATES:], around + width * generator.normal(size=around.shape))
    kept = generator.random(around.shape) < 0.5
    near = np.clip(np.where(kept, around, moved), 0.0, 1.0 - 1e-12)
    return np.concatenate([anywhere[:CANDIDATES], near])


def _share(parameter: Parameter, value: Any) -> float:
    """A value's position in its range, 0 to 1: the middle of all shares that map to the value."""
    if isinstance(parameter, Choice):
        return (parameter.names.index(level_name(value)) + 0.5) / len(parameter.of)
    low, high = bounds(parameter)
    return float(np.log(value / low) / np.log(high / low)) if parameter.log else float((value - low) / (high - low))


def _value(parameter: Parameter, share: float) -> Any:
    if isinstance(parameter, Choice):
        return parameter.of[min(int(share * len(parameter.of)), len(parameter.of) - 1)]
    return at(parameter, float(share))


def _coordinates(space: Space, shares: Array) -> Array:
    """Map shares to points of the unit cube: the points that `encode` gives for the shares' values."""
    columns: list[Array] = []
    for parameter, share in zip(space.values(), shares.T, strict=True):
        match parameter:
            case Choice():
                number = np.minimum((share * len(parameter.of)).astype(int), len(parameter.of) - 1)
                columns += [(number == level).astype(float) for level in range(len(parameter.of))]
            case IntRange():
                low, high = bounds(parameter)
                exact = low * (high / low) ** share if parameter.log else low + share * (high - low)
                whole = np.clip(np.round(exact), parameter.low, parameter.high)
                columns.append(_scaled(parameter, whole))
            case _:
                columns.append(share)
    return np.stack(columns, 1)
