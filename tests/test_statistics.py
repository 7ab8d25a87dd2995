from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from harness.statistics import Interval, equality_p, holm, paired_difference, summarise

VALUES = st.floats(-10, 10).map(lambda value: round(value, 4))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12)


def varies(values: list[float]) -> bool:
    return float(np.std(values, ddof=1)) > 1e-6


@given(st.lists(VALUES, min_size=2, max_size=12))
def test_a_summary_is_the_mean_the_sample_sd_and_scipys_t_interval(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert summary.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    if varies(values):
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert summary.interval is not None
        assert (summary.interval.low, summary.interval.high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(PAIRS)
def test_a_paired_difference_is_scipys_ttest_rel(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs))
    found = paired_difference(ours, theirs)
    assert found is not None
    if not varies([a - b for a, b in pairs]):
        return
    expected = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs])
    bounds = expected.confidence_interval(0.95)
    assert found.n == len(pairs)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-7, abs=1e-12)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high), rel=1e-7, abs=1e-9)


@given(PAIRS)
def test_swapping_the_arms_swaps_the_sign_and_keeps_p(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs))
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert one is not None
    assert other is not None
    assert one.mean == pytest.approx(-other.mean, abs=1e-12)
    assert one.p == (None if other.p is None else pytest.approx(other.p))


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 100.0}, {1: 1.5, 0: 0.2, 7: -100.0})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx((0.8 + 0.5) / 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_nothing_is_claimed_from_one_seed() -> None:
    summary, delta = summarise([0.61]), paired_difference({3: 0.61}, {3: 0.51})
    assert (summary.n, summary.sd, summary.interval) == (1, None, None)
    assert delta is not None
    assert (delta.n, delta.sd, delta.interval, delta.p) == (1, None, None, None)


def test_no_values_are_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_differences_that_are_equal_but_for_rounding_make_no_interval() -> None:
    # 0.3 - 0.2 and 0.4 - 0.3 differ in the last bit: a t-test would call that p < 1e-15
    delta = paired_difference({0: 0.3, 1: 0.4, 2: 0.8}, {0: 0.2, 1: 0.3, 2: 0.7})
    assert delta is not None
    assert delta.mean == pytest.approx(0.1)
    assert (delta.sd, delta.interval, delta.p) == (0.0, None, None)


@pytest.mark.parametrize(
    "p_values", [[0.03], [0.01, 0.04], [0.5, 0.01, 0.01, 0.02], [0.9, 0.8], [0.0, 1.0, 0.3], [0.011, 0.02, 0.019, 0.2]]
)
def test_holm_is_statsmodels_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


def test_an_arm_without_a_p_value_is_no_comparison() -> None:
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([]) == []


@given(PAIRS, st.floats(0.01, 5))
def test_equality_is_statsmodels_two_one_sided_tests(pairs: list[tuple[float, float]], margin: float) -> None:
    found = paired_difference(dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs)))
    assert found is not None
    if varies([a - b for a, b in pairs]):
        ours, theirs = np.array(pairs).T
        expected = ttost_paired(ours, theirs, -margin, margin)[0]
        assert equality_p(found, margin) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_without_spread_nothing_is_equal() -> None:
    delta = paired_difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert delta is not None
    assert equality_p(delta, 0.1) is None


def test_an_interval_that_touches_zero_does_not_exclude_it() -> None:
    assert Interval(0.1, 0.2).excludes_zero
    assert Interval(-0.2, -0.1).excludes_zero
    assert not Interval(0.0, 0.2).excludes_zero
    assert not Interval(-1.0, 0.0).excludes_zero
