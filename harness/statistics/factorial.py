"""Which factor matters: analysis of variance of a factorial design, with seeds as blocks.

Model: value = seed + main effects + two-way interactions + error. Sums of squares are of type II (Yates 1934; Langsrud,
Statistics and Computing 13, 2003): each term is tested beside all others that do not contain it, so runs that are
missing take nothing from a factor that another could explain as well. Effects of three factors and more are left in the
error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
Term = tuple[str, ...]
"""One factor, or the two factors of an interaction."""


@dataclass(frozen=True)
class Cell:
    """One run: the level of every factor, its seed and its value."""

    levels: Mapping[str, str]
    seed: int
    value: float


@dataclass(frozen=True)
class Effect:
    """A factor, or the interaction of two."""

    factors: tuple[str, ...]
    df: int
    sum_of_squares: float
    share: float
    """Eta squared: share of the variation among all runs, from 0 to 1."""
    f: float | None
    """p-value. None with one seed, or if there is no residual error to test against."""
    p: float | None


def effects(cells: Sequence[Cell]) -> list[Effect]:
    """Main effects, then two-way interactions, of the factors that vary. Terms that cannot be separated are left out.

    F and p are those of statsmodels' `anova_lm(ols("value ~ C(seed) + (C(a) + C(b) + ...)**2"), typ=2)`. With one
    seed there are no tests.
    """
    factors = [name for name in (cells[0].levels if cells else ()) if len({cell.levels[name] for cell in cells}) > 1]
    if not factors or len(cells) < 3:
        return []
    values = np.array([cell.value for cell in cells])
    terms: list[Term] = [*((name,) for name in factors), *combinations(factors, 2)]
    fits = _Fits(cells, terms, values)
    full_rank, residual = fits.of(terms)
    error_df = len(values) - full_rank if fits.seeds.shape[1] > 1 else 0
    total = float(np.sum((values - values.mean()) ** 2))
    found = (_effect(term, terms, fits, (residual, error_df), total) for term in terms)
    return [effect for effect in found if effect.df > 0]


def level_means(cells: Sequence[Cell], factor: str) -> dict[str, dict[int, float]]:
    """Mean for each level of `factor` and each seed, over the settings of the other factors that have all levels.

    Levels are thus compared on the same settings even if runs are missing. A seed without such settings is left out.
    """
    levels = list(dict.fromkeys(cell.levels[factor] for cell in cells))
    settings: dict[tuple[int, tuple[tuple[str, str], ...]], dict[str, float]] = {}
    for cell in cells:
        others = tuple((name, level) for name, level in cell.levels.items() if name != factor)
        settings.setdefault((cell.seed, others), {})[cell.levels[factor]] = cell.value
    gathered: dict[str, dict[int, list[float]]] = {level: {} for level in levels}
    for (seed, _), by_level in settings.items():
        if len(by_level) == len(levels):
            for level, value in by_level.items():
                gathered[level].setdefault(seed, []).append(value)
    return {level: {seed: fmean(values) for seed, values in seeds.items()} for level, seeds in gathered.items()}


class _Fits:
    """Models of seeds and terms, each fitted once."""

    def __init__(self, cells: Sequence[Cell], terms: Sequence[Term], values: Array) -> None:
        self.seeds = _indicators([str(cell.seed) for cell in cells])
        self._columns = {term: _columns(cells, term) for term in terms}
        self._values = values
        self._known: dict[frozenset[Term], tuple[int, float]] = {}

    def of(self, terms: Sequence[Term]) -> tuple[int, float]:
        """Rank of the model of a constant, the seeds and `terms`, and its residual sum of squares."""
        # the combinations of two factors' levels span both factors
        needed = [term for term in terms if not any(set(term) < set(other) for other in terms)]
        key = frozenset(needed)
        if key not in self._known:
            self._known[key] = _fit([self.seeds, *(self._columns[term] for term in needed)], self._values)
        return self._known[key]


def _effect(term: Term, terms: Sequence[Term], fits: _Fits, error: tuple[float, int], total: float) -> Effect:
    beside = [other for other in terms if not set(term) <= set(other)]
    rank_without, left_without = fits.of(beside)
    rank_with, left_with = fits.of([*beside, term])
    explained, df = max(left_without - left_with, 0.0), rank_with - rank_without
    residual, error_df = error
    share = explained / total if total > 0 else 0.0
    if df < 1 or error_df < 1 or residual <= 1e-12 * total:
        return Effect(term, df, explained, share, None, None)
    f = (explained / df) / (residual / error_df)
    return Effect(term, df, explained, share, f, float(special.fdtrc(df, error_df, f)))


def _columns(cells: Sequence[Cell], term: Term) -> Array:
    """Indicators [n, levels] of the (combinations of) levels that occur. They span the terms that they contain."""
    return _indicators([repr([cell.levels[name] for name in term]) for cell in cells])


def _indicators(levels: Sequence[str]) -> Array:
    place = {level: number for number, level in enumerate(dict.fromkeys(levels))}
    return np.eye(len(place))[[place[level] for level in levels]]


def _fit(blocks: Sequence[Array], values: Array) -> tuple[int, float]:
    """Rank of a constant and `blocks`, and their residual sum of squares."""
    design = np.hstack([np.ones((len(values), 1)), *blocks])
    # indicators are well conditioned, so the small square matrix gives the same rank as the tall one
    sizes, axes = np.linalg.eigh(design.T @ design)
    kept = sizes > 1e-10 * sizes[-1]
    basis = design @ (axes[:, kept] / np.sqrt(sizes[kept]))
    centred = values - values.mean()
    left = centred - basis @ (basis.T @ centred)
    return int(kept.sum()), float(left @ left)
