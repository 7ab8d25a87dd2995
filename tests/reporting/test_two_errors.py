"""Two errors of a difference: over trainings, and over the samples of the evaluation set."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.evaluation.outcomes import Outcomes, write_outcomes
from harness.reporting import collect, render
from harness.reporting.sections import samples
from harness.reporting.sections.document import Document
from harness.runs.store import Store
from harness.statistics import Difference, holm, sample_error
from harness.statistics.seeds import difference_of
from tests.reporting.made import finish, plan_of

Z = 1.959964


def drawn(rng: np.random.Generator, seeds: int, samples: int, sd: tuple[float, float, float]) -> NDArray[np.float64]:
    """Values [S, n] around 1: of trainings, of samples, of both."""
    return np.asarray(
        1
        + rng.normal(0, sd[0], (seeds, 1))
        + rng.normal(0, sd[1], (1, samples))
        + rng.normal(0, sd[2], (seeds, samples))
    )


def over_seeds(values: NDArray[np.float64]) -> Difference:
    means, n = values.mean(axis=1), len(values)
    sd = float(means.std(ddof=1))
    return difference_of(n, float(means.mean()), sd, sd / math.sqrt(n), n - 1)


def test_the_error_over_samples_is_that_of_their_means_over_seeds() -> None:
    values = drawn(np.random.default_rng(0), 3, 50, (0.5, 1.0, 2.0))
    found = sample_error(values)
    assert found is not None
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.mean(axis=0).std(ddof=1) / math.sqrt(50))
    # the mean square of the interaction in a two-way analysis of variance, over the number of values
    left = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    assert found.residual == pytest.approx(math.sqrt((left**2).sum() / (2 * 49) / 150))
    assert (found.seeds, found.samples, found.df) == (3, 50, 49)


def test_groups_count_as_one_draw() -> None:
    values = drawn(np.random.default_rng(1), 3, 60, (0.5, 1.0, 2.0))
    alone, twice = sample_error(values), sample_error(np.repeat(values, 2, axis=1), np.repeat(np.arange(60), 2))
    assert alone is not None
    assert twice is not None
    assert (twice.error, twice.residual, twice.df) == pytest.approx((alone.error, alone.residual, alone.df))


def test_it_scales_and_ignores_the_order_of_samples() -> None:
    rng = np.random.default_rng(2)
    values, groups = drawn(rng, 4, 40, (1, 1, 1)), rng.integers(0, 12, 40)
    groups = np.unique(groups, return_inverse=True)[1]
    order = rng.permutation(40)
    one, other = sample_error(values, groups), sample_error(3 * values[:, order], groups[order])
    assert one is not None
    assert other is not None
    assert (other.error, other.residual) == pytest.approx((3 * one.error, 3 * one.residual))


@pytest.mark.parametrize("values", [np.ones((3, 20)), np.ones((3, 1)), np.repeat([[0.0], [1.0]], 20, axis=1)])
def test_what_does_not_vary_over_samples_has_no_error(values: NDArray[np.float64]) -> None:
    assert sample_error(values) is None


@pytest.mark.parametrize("sd", [(0.2, 1.0, 1.0), (0.0, 1.0, 3.0), (0.05, 0.3, 2.0), (1.0, 0.0, 1.0)])
def test_intervals_cover_as_often_as_they_say(sd: tuple[float, float, float]) -> None:
    """4,000 tables of 5 seeds and 100 samples. For these trainings the truth contains their own deviations."""
    rng = np.random.default_rng(3)
    training, test_set, both = [], [], []
    for _ in range(4000):
        seeds = rng.normal(0, sd[0], (5, 1))
        samples = rng.normal(0, sd[1], (1, 100))
        values = seeds + samples + rng.normal(0, sd[2], (5, 100))
        found, delta = sample_error(values), over_seeds(values)
        assert found is not None
        together = found.both(delta)
        assert together is not None
        assert delta.interval is not None
        training.append(delta.interval.low <= samples.mean() <= delta.interval.high)
        test_set.append(found.interval.low <= seeds.mean() <= found.interval.high)
        both.append(together.low <= 0 <= together.high)
    assert np.mean(training) == pytest.approx(0.95, abs=0.012)
    assert np.mean(test_set) == pytest.approx(0.95, abs=0.012)
    assert 0.938 <= np.mean(both) <= 0.985


def reported(root: Path, *, without: tuple[str, int] | None = None, seeds: int = 3, others: int = 1) -> Document:
    table = {
        "question": "Which?",
        "baseline": "one",
        "seeds": seeds,
        "primary": "shapes/acc1",
        "arms": {"one": {}, "other": {"train.optimiser.lr": 0.002}}
        | {f"other{number}": {"train.optimiser.lr": 0.002 + number / 1e6} for number in range(1, others)},
    }
    plan, store, rng = plan_of(table), Store(root), np.random.default_rng(4)
    for (arm, seed), run_id in plan.cells.items():
        ranks = rng.integers(1, 3 if arm == "one" else 5, 200)
        keys = np.array([f"s{number:04}" for number in range(200)], dtype=object)
        columns = {"key": keys, "label": ranks, "prediction": ranks, "rank": ranks}
        if (arm, seed) != without:
            outcomes = Outcomes("shapes", "zeroshot_classification", "shapes-p1", columns)
            write_outcomes(store.run(run_id).outcomes, outcomes)
        finish(store, run_id, {"shapes/acc1": float((ranks == 1).mean())})
    return Document(collect(plan, store))


def test_a_report_tells_another_training_from_another_test_set(tmp_path: Path) -> None:
    document = reported(tmp_path)
    (table,) = [one for one in document.answering if one.key == "errors"]
    ((name, delta, training, test_set, both, samples),) = [[entry.text for entry in row] for row in table.rows]
    (one,) = json.loads(render(document.results, "json"))["errors"]
    assert (name, samples) == ("other", "200")
    assert float(delta) == pytest.approx(100 * document.primary.arms["other"].difference.mean, abs=0.05)  # type: ignore
    for text, key in ((training, "another_training"), (test_set, "another_test_set"), (both, "both")):
        low, high = json.loads(text)
        assert (low, high) == pytest.approx((100 * one[key]["low"], 100 * one[key]["high"]), abs=0.05)
    assert len({training, test_set, both}) == 3
    assert "on another test set" in render(document.results, "html")


def test_runs_without_outcomes_are_named(tmp_path: Path) -> None:
    document = reported(tmp_path, without=("other", 1))
    (table,) = [one for one in document.answering if one.key == "errors"]
    assert table.rows == ()
    assert "1 arm left out (not every run kept its outcomes, or nothing varies over samples): other." in table.notes


@pytest.mark.parametrize(("seeds", "key"), [(1, "samples"), (2, "errors")])
def test_arms_beyond_the_hundred_best_are_told_and_corrected_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, key: str
) -> None:
    families = []

    def corrected(values: list[float | None]) -> list[float | None]:
        families.append(len(values))
        return holm(values)

    monkeypatch.setattr(samples, "MOST_ARMS", 2)
    monkeypatch.setattr(samples, "holm", corrected)
    for others in (2, 3):
        document = reported(tmp_path / str(others), seeds=seeds, others=others)
        (table,) = [one for one in document.answering if one.key == key]
        assert len(table.rows) == 2
        told = "The 2 best of 3 arms: outcomes of the others are not read."
        assert (told in table.notes) == (others == 3)
    assert families == ([2, 3] if seeds == 1 else [])
