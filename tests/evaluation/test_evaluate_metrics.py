"""Standard errors against closed forms and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from harness.evaluation.metrics import clustered_proportion, mean_per_class_recall, proportion
from harness.runs.record import Metric

DRAWS = 4000


def error_of(metric: Metric) -> float:
    assert metric.standard_error is not None
    return metric.standard_error


@settings(max_examples=50, deadline=None)
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=200))
def test_proportion_is_a_mean_with_its_standard_error(outcomes: list[bool]) -> None:
    correct = np.array(outcomes)
    metric = proportion(correct)
    assert metric.value == pytest.approx(correct.mean())
    if 0 < correct.sum() < len(correct):
        assert metric.standard_error == pytest.approx(correct.std() / np.sqrt(len(correct)))
    assert metric.samples == len(correct)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("n", [1, 4, 1500])
def test_an_accuracy_of_0_or_1_has_an_error(right: bool, n: int) -> None:
    """Less than with one sample the other way, and that of Jeffreys' estimate."""
    share = 0.5 / (n + 1)
    expected = np.sqrt(share * (1 - share) / n)
    alike = np.full(n, right)
    assert error_of(proportion(alike)) == pytest.approx(expected)
    assert error_of(clustered_proportion(np.full(3 * n, right), np.repeat(np.arange(n), 3))) == pytest.approx(expected)
    assert error_of(mean_per_class_recall(alike, np.zeros(n, dtype=np.int64))) == pytest.approx(expected)
    if n > 1:
        almost = alike.copy()
        almost[0] = not right
        assert 0 < expected < error_of(proportion(almost))


def test_classes_all_right_or_all_wrong_have_an_error() -> None:
    metric = mean_per_class_recall(np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    assert metric.value == 0.5
    assert error_of(metric) == pytest.approx(np.sqrt(2 * (1 / 6) * (5 / 6) / 2) / 2)


@settings(max_examples=50, deadline=None)
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=200))
def test_clusters_of_one_are_the_binomial_case(outcomes: list[bool]) -> None:
    correct = np.array(outcomes)
    plain, clustered = proportion(correct), clustered_proportion(correct, np.arange(len(correct)))
    assert clustered.value == plain.value
    assert clustered.standard_error == pytest.approx(plain.standard_error)


def test_copies_of_an_outcome_tell_nothing_new() -> None:
    correct = np.random.default_rng(0).random(300) < 0.3
    copies = clustered_proportion(np.repeat(correct, 5), np.repeat(np.arange(300), 5))
    assert copies.value == pytest.approx(correct.mean())
    assert copies.standard_error == pytest.approx(proportion(correct).standard_error)
    assert copies.samples == 1500


def test_clustered_error_is_that_of_a_bootstrap_over_images() -> None:
    random = np.random.default_rng(1)
    chance = np.repeat(random.beta(0.6, 0.9, 400), 5)
    correct = random.random(2000) < chance
    by_image = correct.reshape(400, 5).mean(axis=1)
    draws = by_image[random.integers(0, 400, (DRAWS, 400))].mean(axis=1)
    clustered = error_of(clustered_proportion(correct, np.repeat(np.arange(400), 5)))
    assert clustered == pytest.approx(draws.std(), rel=0.05)
    assert clustered > 1.5 * error_of(proportion(correct))


@pytest.mark.filterwarnings("ignore:y_pred contains classes:UserWarning")
def test_mean_per_class_recall_is_scikit_learns_with_a_bootstrap_within_classes() -> None:
    random = np.random.default_rng(2)
    counts = random.integers(3, 60, 12)
    labels = np.repeat(np.arange(12) * 2, counts)  # every second class does not occur
    correct = random.random(len(labels)) < np.repeat(random.random(12), counts)
    metric = mean_per_class_recall(correct, labels)
    assert metric.value == pytest.approx(balanced_accuracy_score(labels, np.where(correct, labels, labels + 1)))
    recalls = [correct[labels == label] for label in np.unique(labels)]
    draws = np.mean([random.choice(each, (DRAWS, len(each))).mean(axis=1) for each in recalls], axis=0)
    assert metric.standard_error == pytest.approx(draws.std(), rel=0.05)
    assert metric.samples == len(labels)


def test_balanced_classes_have_one_accuracy() -> None:
    labels = np.tile(np.arange(10), 30)
    correct = np.random.default_rng(3).random(300) < 0.6
    per_class, plain = mean_per_class_recall(correct, labels), proportion(correct)
    assert per_class.value == pytest.approx(plain.value)
    assert error_of(per_class) < error_of(plain)  # classes are fixed, so differences between them are no noise
