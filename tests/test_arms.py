"""Errors of differences that share the variances of all arms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.statistics import Difference, Estimation, Estimator, paired_difference

VALUES = st.floats(-10, 10).map(lambda value: round(value, 3))
Table = dict[str, dict[int, float]]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Two to five arms on two to five seeds, some cells missing; every arm has two seeds."""
    seeds = draw(st.integers(2, 5))
    arms = {}
    for name in "abcde"[: draw(st.integers(2, 5))]:
        gone = draw(st.sets(st.integers(2, 4), max_size=2))
        arms[name] = {seed: draw(VALUES) for seed in range(seeds) if seed not in gone}
    return arms


def same(one: Difference | None, other: Difference | None, scale: float = 1.0) -> None:
    assert one is not None
    assert other is not None
    assert other.mean == pytest.approx(one.mean * scale, rel=1e-6, abs=1e-9)
    assert (one.error is None) == (other.error is None)
    if one.error is not None:
        assert other.error == pytest.approx(one.error * scale, rel=1e-6)
        assert other.df == pytest.approx(one.df, rel=1e-6)


def varied(table: Table) -> bool:
    return any(np.std(list(seeds.values())) > 1e-3 for seeds in table.values())


@given(tables())
def test_the_order_of_arms_does_not_matter(table: Table) -> None:
    same(Estimator(table).difference("a", "b"), Estimator(dict(reversed(table.items()))).difference("a", "b"))


@given(tables(), st.sampled_from([0.01, 3.0, 1000.0]))
def test_errors_scale_with_the_values(table: Table, scale: float) -> None:
    if varied(table):
        scaled = {arm: {seed: scale * value for seed, value in seeds.items()} for arm, seeds in table.items()}
        same(Estimator(table).difference("a", "b"), Estimator(scaled).difference("a", "b"), scale)


@given(tables())
def test_a_copy_of_an_arm_changes_nothing(table: Table) -> None:
    same(Estimator(table).difference("a", "b"), Estimator({**table, "copy": table["b"]}).difference("a", "b"))


@given(tables())
def test_paired_estimation_is_the_paired_t_test(table: Table) -> None:
    assert Estimator(table, "paired").difference("a", "b") == paired_difference(table["a"], table["b"])


def drawn(sds: list[float], seeds: int = 3, common: float = 0.0, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, common, seeds)
    return {str(arm): dict(enumerate(rng.normal(0, sd, seeds) + shared)) for arm, sd in enumerate(sds)}


def rate(sds: list[float], *, seeds: int = 3, common: float = 0.0, method: Estimation = "shared") -> float:
    """How often the marginal interval of the difference of arms 0 and 1 covers the truth, 0."""
    intervals = []
    for seed in range(500):
        delta = Estimator(drawn(sds, seeds, common, seed), method).difference("1", "0")
        assert delta is not None
        assert delta.interval is not None
        intervals.append(not delta.interval.excludes_zero)
    return float(np.mean(intervals))


@pytest.mark.parametrize(
    ("sds", "seeds", "common", "least"),
    [
        ([1.0] * 5, 3, 0.0, 0.93),
        ([1.0] * 5, 3, 2.0, 0.94),  # most of the seeds' common variance is taken off, so it is wide
        ([1.0] * 5, 2, 0.0, 0.93),
        ([1.0] * 2, 3, 0.0, 0.95),
        ([1.0] * 2, 2, 0.0, 0.95),
        ([1.0] * 3, 3, 0.0, 0.93),
        ([1.0, 4.0, 1.0, 1.0, 1.0], 3, 0.0, 0.87),  # the noisiest arm
    ],
)
def test_intervals_cover(sds: list[float], seeds: int, common: float, least: float) -> None:
    assert rate(sds, seeds=seeds, common=common) > least


def test_intervals_are_shorter_than_those_of_pairs() -> None:
    def width(method: Estimation) -> float:
        found = [Estimator(drawn([1.0] * 5, seed=seed), method).difference("1", "0") for seed in range(200)]
        return float(np.median([one.interval.high - one.interval.low for one in found if one and one.interval]))

    assert width("shared") < 0.75 * width("paired")


def test_pairing_is_used_where_seeds_have_much_in_common() -> None:
    apart, together = (Estimator(drawn([1.0] * 5, 5, common)).difference("1", "0") for common in (0.0, 10.0))
    assert apart is not None
    assert together is not None
    assert apart.error is not None
    assert together.error is not None
    assert together.error < 0.8 * 10 * math.sqrt(2 / 5)  # half of what unpaired runs would have


def test_one_very_noisy_arm_does_not_hide_the_others() -> None:
    quiet = drawn([0.01] * 4)
    alone = Estimator(quiet).difference("1", "0")
    beside = Estimator({**quiet, "noisy": {0: 0.1, 1: 90.0, 2: -40.0}}).difference("1", "0")
    assert alone is not None
    assert beside is not None
    assert alone.error is not None
    assert beside.error is not None
    assert beside.error < 3 * alone.error


def test_arms_without_spread() -> None:
    nothing = {arm: {0: 0.5, 1: 0.5 + 1e-16, 2: 0.5} for arm in "ab"}
    delta = Estimator(nothing).difference("a", "b")
    assert delta is not None
    assert (delta.interval, delta.p, delta.error, delta.df) == (None, None, None, None)
    delta = Estimator({**nothing, "c": {0: 0.1, 1: 0.2, 2: 0.3}}).difference("a", "b")
    assert delta is not None
    assert delta.error is not None
    assert delta.error > 0  # it may have been luck


def test_one_seed_in_common_tells_nothing() -> None:
    table = {"a": {0: 1.0, 1: 2.0}, "b": {1: 1.0, 2: 3.0}, "c": {0: 0.0}}
    for arm in "bc":
        delta = Estimator(table).difference("a", arm)
        assert delta is not None
        assert (delta.n, delta.interval) == (1, None)
    assert Estimator(table).difference("b", "c") is None
