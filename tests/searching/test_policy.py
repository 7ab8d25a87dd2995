"""FastBO's policy, learning-curve fits, the ladder and the Gaussian process against hand-worked cases and scipy."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from harness.config.search import FloatRange, IntRange, Parameter
from harness.config.strategy import FastBOPolicy, LadderPolicy, QuasiRandomSampler
from harness.searching import gp
from harness.searching import pausing_halving as ladder
from harness.searching.curves import fit
from harness.searching.fastbo import Continue, StopAt, Terminate, decide, points, promoted, warmup_point
from harness.searching.samplers import at, quasi_random

POLICY = FastBOPolicy()
LENGTH = 50


def observed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, 1))


def test_the_warm_up_point_is_a_fifth_of_the_way() -> None:
    assert warmup_point(POLICY, 51) == 11  # 1 + .2 * 50
    assert warmup_point(POLICY, 5) == 2
    assert warmup_point(POLICY, 1) == 1


def test_efficient_and_saturation_point_of_an_exponential_by_hand() -> None:
    """C(r) = .1 + exp(-r / 5): C(r) - C(2r) < .001 first at r = 35; |C(50) - C(r)| < .0005 first at r = 38."""
    levels = list(range(1, 12))
    curve = fit(levels, [0.1 + math.exp(-r / 5) for r in levels], LENGTH)
    exact = [0.1 + math.exp(-r / 5) for r in range(1, 2 * LENGTH + 1)]
    efficient = next(r for r in range(1, LENGTH + 1) if exact[r - 1] - exact[2 * r - 1] < 0.001)
    saturation = next(r for r in range(1, LENGTH + 1) if exact[r - 1] - exact[LENGTH - 1] < 0.0005)
    assert (efficient, saturation) == (35, 38)
    found = points(POLICY, curve, LENGTH)
    assert abs(found[0] - efficient) <= 2
    assert abs(found[1] - saturation) <= 2


def test_a_flat_curve_is_efficient_and_saturated_at_once() -> None:
    decision = decide(POLICY, observed([0.3] * 11), LENGTH)
    assert isinstance(decision, StopAt)
    assert (decision.efficient, decision.saturation) == (11, 11)
    assert decision.residual < 1e-9


def test_before_the_warm_up_point_it_goes_on() -> None:
    assert decide(POLICY, observed([0.9, 0.8, 0.7]), LENGTH) == Continue()


def test_two_rises_in_a_row_terminate_and_one_does_not() -> None:
    assert decide(POLICY, observed([0.5, 0.56, 0.63]), LENGTH) == Terminate(3)
    assert decide(POLICY, observed([0.5, 0.56, 0.55]), LENGTH) == Continue()
    assert decide(POLICY, observed([0.5, 0.54, 0.58]), LENGTH) == Continue()  # by less than a tenth


def test_a_single_rise_is_left_out_of_the_fit_unless_asked_otherwise() -> None:
    smooth = [0.1 + 0.8 * r**-0.5 for r in range(1, 12)]
    spiked = smooth.copy()
    spiked[5] *= 1.5
    clean, left_out = (decide(POLICY, observed(values), LENGTH) for values in (smooth, spiked))
    assert isinstance(clean, StopAt)
    assert isinstance(left_out, StopAt)
    assert left_out.efficient == pytest.approx(clean.efficient, abs=1)
    kept = decide(FastBOPolicy(leave_out_drop=False), observed(spiked), LENGTH)
    assert isinstance(kept, StopAt)
    assert kept.residual > 10 * left_out.residual


def test_relative_thresholds_are_shares_of_what_the_curve_gains() -> None:
    levels = list(range(1, 12))
    curve = fit(levels, [0.1 + 0.5 * math.exp(-r / 5) for r in levels], LENGTH)
    early, _ = points(FastBOPolicy(thresholds="relative", efficient_below=0.1), curve, LENGTH)
    late, _ = points(POLICY, curve, LENGTH)
    assert early < late


def test_how_many_are_promoted_by_both_readings() -> None:
    assert promoted(POLICY, 100, 4) == 10
    assert promoted(POLICY, 10, 4) == 4
    assert promoted(FastBOPolicy(promoted="at_most_workers"), 100, 4) == 4
    assert promoted(POLICY, 2, 4) == 2
    assert promoted(POLICY, 21, 1) == 3  # a tenth of 21, rounded up


@given(st.lists(st.floats(0, 1), min_size=0, max_size=60))
def test_a_decision_is_a_point_within_the_run(values: list[float]) -> None:
    match decide(POLICY, observed(values), LENGTH):
        case StopAt(efficient, saturation, residual):
            assert len(values) >= 11 <= min(efficient, saturation)
            assert max(efficient, saturation) <= LENGTH
            assert math.isfinite(residual)
        case Terminate(level):
            assert 3 <= level <= 11
        case Continue():
            assert len(values) < 11


@given(st.floats(0.05, 0.5), st.floats(0.1, 0.8), st.floats(0.2, 1.5))
def test_raising_the_threshold_never_makes_a_later_point(d: float, a: float, c: float) -> None:
    levels = list(range(1, 12))
    curve = fit(levels, [d + a * r**-c for r in levels], LENGTH)
    strict, _ = points(FastBOPolicy(efficient_below=0.001), curve, LENGTH)
    loose, _ = points(FastBOPolicy(efficient_below=0.01), curve, LENGTH)
    assert loose <= strict


@pytest.mark.parametrize(("a", "c"), [(0.5, 0.3), (0.3, 1.0), (0.7, 0.6)])
def test_a_noisy_power_law_is_fitted_as_well_as_scipy_does(a: float, c: float) -> None:
    levels = np.arange(1, 21, dtype=float)
    errors = 0.1 + a * levels**-c + np.random.default_rng(0).normal(0, 0.003, 20)
    theirs, _ = curve_fit(lambda r, d, a, c: d + a * r**-c, levels, errors, p0=(0.1, 0.5, 0.5), maxfev=20000)
    best = float(np.sqrt(np.mean((theirs[0] + theirs[1] * levels ** -theirs[2] - errors) ** 2)))
    assert fit(levels.tolist(), errors.tolist(), LENGTH).residual <= 1.02 * best


def test_families_without_noise_are_recognised() -> None:
    levels = list(range(1, 15))
    for name, values in {
        "POW3": [0.1 + 0.5 * r**-0.5 for r in levels],
        "EXP3": [0.1 + math.exp(-0.4 * r) for r in levels],
        "LOG2": [0.9 - 0.1 * math.log(r) for r in levels],
    }.items():
        curve = fit(levels, values, LENGTH)
        heaviest = curve.families[int(np.argmax(curve.weights))].name
        assert heaviest == name
        assert curve(np.array(levels, float)) == pytest.approx(values, abs=2e-3)


def test_one_observation_makes_no_curve() -> None:
    with pytest.raises(ValueError, match="two observations"):
        fit([1], [0.5], LENGTH)


def test_rungs_end_at_the_full_length() -> None:
    assert ladder.rungs(LadderPolicy(first_rung=2), 50) == (2, 6, 18, 50)
    assert ladder.rungs(LadderPolicy(first_rung=1), 8) == (1, 3, 8)
    assert ladder.rungs(LadderPolicy(first_rung=9), 8) == (8,)


def test_one_in_three_climbs_and_the_highest_rung_goes_first() -> None:
    policy = LadderPolicy(first_rung=1)
    seen = {0: {1: 0.5}, 1: {1: 0.4}, 2: {1: 0.6}}
    assert ladder.to_promote(policy, {0: {1: 0.5}, 1: {1: 0.4}}, {0: 1, 1: 1}, 9) is None
    assert ladder.to_promote(policy, seen, {0: 1, 1: 1, 2: 1}, 9) == 1
    assert ladder.to_promote(policy, seen, {0: 1, 2: 1}, 9) is None  # the best is on its way
    higher = {number: {1: 0.5, 3: 0.1 * number} for number in range(3, 6)}
    paused = dict.fromkeys(seen, 1) | dict.fromkeys(higher, 3)
    assert ladder.to_promote(policy, seen | higher, paused, 9) == 3


def test_a_rung_that_orders_the_probes_otherwise_pauses_nobody() -> None:
    policy = LadderPolicy(first_rung=1, probes=4, trust=0.7)
    ends = {1: 0.4, 2: 0.3, 5: 0.2, 6: 0.1}
    crossing = {number: {1: 1 - end, 3: end + 0.1, 9: end} for number, end in ends.items()}
    assert ladder.telling(policy, crossing, 9) == (3, 9)
    assert ladder.telling(policy, {number: crossing[number] for number in (1, 2, 5)}, 9) == (1, 3, 9)  # too few
    assert ladder.telling(LadderPolicy(first_rung=1, probes=0), crossing, 9) == (1, 3, 9)
    assert ladder.telling(policy, crossing | {7: {1: 0.1, 3: 0.9, 9: 0.1}}, 9) == (3, 9)  # no probe: it came later
    assert ladder.telling(policy, {0: {9: 0.5}} | crossing, 9) == (3, 9)  # a warm start, without a curve
    paused = {number: {1: 0.01 * number} for number in range(10, 20)}
    assert ladder.to_promote(policy, crossing | paused, dict.fromkeys(paused, 1), 9) is None


def test_equal_probes_say_nothing_for_a_rung() -> None:
    equal = {number: {1: 0.5, 3: 0.5, 9: 0.1 * number} for number in range(4)}
    assert ladder.telling(LadderPolicy(first_rung=1, probes=4), equal, 9) == (9,)


def test_forecasts_learn_gains_from_those_that_climbed() -> None:
    policy = LadderPolicy(first_rung=1, reduction=3)
    climbed = {number: {1: 0.1 * number, 3: 0.05 * number + 0.01} for number in range(1, 6)}
    forecast = ladder.forecasts(policy, climbed | {9: {1: 0.7}}, 3)
    assert forecast[9] == pytest.approx(0.36)
    assert forecast[2] == pytest.approx(0.11)
    assert ladder.forecasts(policy, {0: {1: 0.5}}, 3) == {0: 0.5}


def test_the_process_equals_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    seen, asked, values = generator.random((20, 3)), generator.random((7, 3)), generator.normal(size=20)
    lengths = np.array([0.3, 0.7, 1.5])
    kernel = 1.7 * Matern(length_scale=lengths, nu=2.5)
    theirs = GaussianProcessRegressor(kernel, alpha=0.05, optimizer=None).fit(seen, values)
    mean, deviation = theirs.predict(asked, return_std=True)
    ours = gp.Process.at(seen, values, lengths, 1.7, 0.05).predict(asked)
    assert ours[0] == pytest.approx(mean, abs=1e-9)
    assert ours[1] == pytest.approx(deviation, abs=1e-9)


def test_the_gradient_of_the_fit_is_that_of_differences() -> None:
    generator = np.random.default_rng(2)
    seen, values = generator.random((12, 2)), generator.normal(size=12)
    theta = np.array([-0.5, 0.3, 0.2, -1.5])
    _, gradient = gp._loss(theta, seen, values)
    for place in range(4):
        step = np.zeros(4)
        step[place] = 1e-5
        difference = (gp._loss(theta + step, seen, values)[0] - gp._loss(theta - step, seen, values)[0]) / 2e-5
        assert gradient[place] == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_normal_scores_are_those_of_salinas() -> None:
    """Salinas et al., 2020: the quantile of (rank - 1/2) / n; ties share their mean rank."""
    normal = NormalDist()
    expected = [normal.inv_cdf(share) for share in (0.125, 0.5, 0.5, 0.875)]
    np.testing.assert_allclose(gp.normal_scores(np.array([0.1, 0.3, 0.3, 9.0])), expected, atol=1e-12)


def test_log_improvement_equals_the_integral() -> None:
    draws = np.random.default_rng(3).normal(size=400_000)
    for gain, deviation in ((0.2, 0.5), (-0.5, 0.4)):
        exact = np.maximum(gain + deviation * draws, 0).mean()
        found = float(np.exp(gp.log_improvement(np.array([gain]), np.array([deviation])))[0])
        assert found == pytest.approx(exact, rel=0.02)
    deep = gp.log_improvement(np.array([-5.0, -6.5, -30.0]), np.ones(3))
    assert np.isfinite(deep).all()
    assert (np.diff(deep) < 0).all()


@given(st.floats(0, 1), st.booleans())
def test_shares_stay_within_ranges(share: float, log: bool) -> None:
    assert 2 <= at(FloatRange(low=2, high=30, log=log), share) <= 30
    assert 2 <= at(IntRange(low=2, high=9, log=log), share) <= 9


def test_quasi_random_points_are_a_function_of_their_number() -> None:
    space: dict[str, Parameter] = {"a": FloatRange(low=0, high=1), "b": IntRange(low=1, high=8)}
    spec = QuasiRandomSampler()
    found = [quasi_random(spec, space, 7, number) for number in range(16)]
    assert found[5] == quasi_random(spec, space, 7, 5)
    assert {int(one["a"] * 4) for one in found[:4]} == {0, 1, 2, 3}
