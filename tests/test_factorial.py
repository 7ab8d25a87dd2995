"""Factors against statsmodels' type II analysis of variance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from harness.statistics import Cell, Effect, effects, level_means

FORMULAS = {
    ("a",): "value ~ C(seed) + C(a)",
    ("a", "b"): "value ~ C(seed) + (C(a) + C(b))**2",
    ("a", "b", "c"): "value ~ C(seed) + (C(a) + C(b) + C(c))**2",
}


def design(factors: dict[str, int], seeds: int, rng: np.random.Generator, missing: int = 0) -> list[Cell]:
    """A full factorial of `factors` (levels by name) with numbers made of effects and noise, a few runs missing."""
    cells = []
    shape = tuple(factors.values())
    surface = rng.normal(size=shape)
    for place in np.ndindex(*shape, seeds):
        levels = {name: str(level) for name, level in zip(factors, place, strict=False)}
        cells.append(Cell(levels, place[-1], float(surface[place[:-1]] + rng.normal(0, 0.3) + 0.2 * place[-1])))
    dropped = set(rng.choice(len(cells), missing, replace=False).tolist())
    return [cell for number, cell in enumerate(cells) if number not in dropped]


def anova(cells: list[Cell]) -> dict[str, dict[str, float]]:
    """Columns of statsmodels' table, each by term."""
    fit = ols(FORMULAS[tuple(cells[0].levels)], frame(cells)).fit()
    return {str(column): values for column, values in anova_lm(fit, typ=2).to_dict().items()}


def named(effect: Effect) -> str:
    return ":".join(f"C({name})" for name in effect.factors)


def frame(cells: list[Cell]) -> pd.DataFrame:
    return pd.DataFrame([{**cell.levels, "seed": cell.seed, "value": cell.value} for cell in cells])


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seeds=st.integers(3, 4),
    missing=st.integers(0, 2),
    number=st.integers(0, 10**6),
)
def test_effects_are_statsmodels_type_two_anova(levels: list[int], seeds: int, missing: int, number: int) -> None:
    factors = dict(zip("abc", levels, strict=False))
    cells = design(factors, seeds, np.random.default_rng(number), missing)
    found = effects(cells)
    assert {(name,) for name in factors} <= {effect.factors for effect in found}
    rank = np.linalg.matrix_rank(ols(FORMULAS[tuple(factors)], frame(cells)).exog)
    if rank < columns(factors, seeds):
        return  # statsmodels counts degrees of freedom that empty cells do not have
    if rank == len(cells):
        assert {effect.f for effect in found} == {None}
        return  # nothing is left to test against, which statsmodels refuses
    table = anova(cells)
    for effect in found:
        term = named(effect)
        assert effect.df == table["df"][term]
        assert effect.sum_of_squares == pytest.approx(table["sum_sq"][term], rel=1e-7, abs=1e-9)
        if effect.f is not None:
            assert effect.f == pytest.approx(table["F"][term], rel=1e-6)
            assert effect.p == pytest.approx(table["PR(>F)"][term], rel=1e-6, abs=1e-12)


def columns(factors: dict[str, int], seeds: int) -> int:
    free = [levels - 1 for levels in factors.values()]
    pairs = sum(one * other for place, one in enumerate(free) for other in free[place + 1 :])
    return 1 + (seeds - 1) + sum(free) + pairs


def test_shares_of_a_balanced_design_and_its_error_add_up_to_the_whole() -> None:
    cells = design({"a": 3, "b": 2}, 4, np.random.default_rng(1))
    table = anova(cells)
    found = effects(cells)
    total = sum(table["sum_sq"].values())
    assert [effect.share for effect in found] == pytest.approx([table["sum_sq"][named(one)] / total for one in found])
    assert sum(effect.share for effect in found) < 1


def test_nothing_is_tested_on_one_seed() -> None:
    found = effects(design({"a": 3, "b": 3}, 1, np.random.default_rng(2)))
    assert [effect.factors for effect in found] == [("a",), ("b",), ("a", "b")]
    assert {effect.p for effect in found} == {None}


def test_one_factor_at_a_time_has_main_effects_and_no_interaction() -> None:
    corners = [("0", "0"), ("1", "0"), ("2", "0"), ("0", "1")]
    rng = np.random.default_rng(3)
    cells = [Cell({"a": a, "b": b}, seed, float(rng.normal())) for a, b in corners for seed in range(3)]
    assert [effect.factors for effect in effects(cells)] == [("a",), ("b",)]


def test_a_factor_that_never_varies_and_values_that_never_differ_are_no_error() -> None:
    assert effects([]) == []
    cells = [Cell({"a": str(level), "b": "x"}, seed, 0.5) for level in range(2) for seed in range(3)]
    (only,) = effects(cells)
    assert (only.factors, only.share, only.p) == (("a",), 0.0, None)


def test_levels_are_compared_on_settings_that_all_of_them_have() -> None:
    values = {("x", "0"): 1.0, ("x", "1"): 3.0, ("y", "0"): 2.0}  # y was not run at 1
    cells = [Cell({"a": a, "b": b}, 0, value) for (a, b), value in values.items()]
    assert level_means(cells, "a") == {"x": {0: 1.0}, "y": {0: 2.0}}
    assert level_means(cells, "b") == {"0": {0: 1.0}, "1": {0: 3.0}}
