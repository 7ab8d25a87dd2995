"""Two checkpoints on the same samples, against scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as theirs_mcnemar

from harness.statistics import compare_samples, mcnemar, paired_bootstrap


def hits(n: int, share: float, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(n) < share


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_statsmodels_exact_test(only_ours: int, only_theirs: int) -> None:
    if only_ours + only_theirs == 0:
        assert mcnemar(0, 0) == 1.0
        return
    expected = theirs_mcnemar([[50, only_ours], [only_theirs, 50]], exact=True).pvalue
    assert mcnemar(only_ours, only_theirs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "shares"), [(400, (0.6, 0.5)), (2000, (0.31, 0.30)), (100, (0.95, 0.99))])
def test_the_bootstrap_is_scipys(n: int, shares: tuple[float, float]) -> None:
    ours, theirs = hits(n, shares[0], 1), hits(n, shares[1], 2)
    found = compare_samples(ours, theirs)
    deltas = ours.astype(float) - theirs.astype(float)
    rng = np.random.default_rng(5)
    expected = stats.bootstrap((deltas,), np.mean, n_resamples=9999, method="percentile", random_state=rng, batch=500)
    bounds = expected.confidence_interval
    width = bounds.high - bounds.low
    assert found.difference == pytest.approx(deltas.mean())
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high), abs=0.08 * width)
    assert (found.only_ours, found.only_theirs) == (int((deltas > 0).sum()), int((deltas < 0).sum()))


def test_captions_of_one_image_are_drawn_together() -> None:
    # five captions of an image that are all right or all wrong say no more than one
    deltas = np.random.default_rng(3).integers(-1, 2, 300).astype(float)
    groups = np.repeat(np.arange(300), 5)
    alone, together = paired_bootstrap(deltas), paired_bootstrap(np.repeat(deltas, 5), groups)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.1)
    apart = paired_bootstrap(np.repeat(deltas, 5))
    assert apart.high - apart.low < 0.6 * (together.high - together.low)
    repeated = np.repeat(deltas > 0, 5)
    assert compare_samples(repeated, ~repeated, groups).p is None


def test_the_same_outcomes_give_the_same_interval_and_no_difference_gives_none() -> None:
    ours, theirs = hits(500, 0.5, 1), hits(500, 0.4, 2)
    assert compare_samples(ours, theirs) == compare_samples(ours, theirs)
    same = compare_samples(ours, ours)
    assert (same.difference, same.interval.low, same.interval.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_outcomes_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="same samples"):
        compare_samples(hits(5, 0.5, 1), hits(6, 0.5, 1))
    with pytest.raises(ValueError, match="same samples"):
        compare_samples(hits(0, 0.5, 1), hits(0, 0.5, 1))
