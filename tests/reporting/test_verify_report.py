"""`harness verify` derives the statistics of a report over several seeds, by code of its own."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.execute.verify import Verification, agree
from harness.execute.verify_report import Derived, _by_all_arms, _hits, _two_errors, verify_report
from harness.reporting import collect, render
from harness.runs.store import Store
from harness.statistics import Estimator, equality_p, sample_error
from harness.statistics.seeds import difference_of
from tests.reporting.made import LEVELS, QUICKSTART, fill, plan_of, quickstart
from tests.reporting.test_two_errors import reported
from tests.test_arms import Table, tables


def verified(report: str, store: Store) -> Verification:
    found = Verification()
    for run in store.runs():
        found.folders[run.id] = run
        for one in run.record().evaluations:
            for metric, value in one.metrics.items():
                found.derived[run.id, one.set, one.protocol_id, metric] = value.value
    verify_report(report, found)
    return found


@pytest.mark.parametrize("estimation", ["shared", "paired"])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_every_statistic_over_seeds_is_derived_again(tmp_path: Path, estimation: str, seeds: int) -> None:
    plan, store = quickstart(tmp_path, estimation=estimation, seeds=seeds)
    found = verified(render(collect(plan, store), "json"), store)
    assert [one for one in found.problems if "train/" not in one] == []
    assert found.report > 100


def test_arms_with_other_seeds_than_the_baseline(tmp_path: Path) -> None:
    plan, store = plan_of({**QUICKSTART, "seeds": 5}), Store(tmp_path)
    fill(plan, store, LEVELS, skip=[("all", 1), ("all", 2), ("clip", 4), ("fff", 0)])
    found = verified(render(collect(plan, store), "json"), store)
    assert [one for one in found.problems if "train/" not in one] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda arm: arm["difference"].update(p=arm["difference"]["p"] + 1e-6),
        lambda arm: arm["difference"]["interval"].update(low=arm["difference"]["interval"]["low"] - 1e-4),
        lambda arm: arm["difference"].update(mean=arm["difference"]["mean"] + 1e-4),
        lambda arm: arm.update(holm_p=arm["holm_p"] / 2),
        lambda arm: arm["simultaneous"].update(low=arm["simultaneous"]["low"] + 1e-6),
        lambda arm: arm["difference"].update(error=arm["difference"]["error"] * 1.001),
        lambda arm: arm["summary"].update(sd=arm["summary"]["sd"] / 2),
    ],
)
def test_a_changed_statistic_is_noticed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plan, store = quickstart(tmp_path)
    report = json.loads(render(collect(plan, store), "json"))
    column = next(one for one in report["metrics"] if one["metric"] == "shapes/acc1")
    change(next(arm for arm in column["arms"] if arm["arm"] == "fff"))
    assert any("shapes/acc1 of fff" in one for one in verified(json.dumps(report), store).problems)


def test_a_changed_claim_is_noticed(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path)
    text = render(collect(plan, store), "json")
    changes: tuple[Callable[[dict[str, Any]], None], ...] = (
        lambda claim: claim.update(p=claim["p"] / 2),
        lambda claim: claim["difference"].update(mean=claim["difference"]["mean"] + 1e-4),
        lambda claim: claim["difference"].update(p=claim["difference"]["p"] + 1e-6),
        lambda claim: claim.update(equality_p=claim["equality_p"] / 2),
    )
    for place, change in zip((0, 0, 0, 3), changes, strict=True):
        report = json.loads(text)
        change(report["claims"][place])
        (problem,) = (one for one in verified(json.dumps(report), store).problems if "train/" not in one)
        assert f"claim {report['claims'][place]['text']!r}" in problem


def test_what_cannot_be_derived_is_said_and_the_rest_is_derived(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path)
    report = render(collect(plan, store), "json")
    whole = verified(report, store)
    shutil.rmtree(store.run(plan.cells["all", 0]).path)
    part = verified(report, store)
    assert [one for one in part.problems if "train/" not in one] == []
    assert 0 < part.report < whole.report
    said = "\n".join(part.unproven)
    assert "shapes/acc1 of all is not derived again" in said
    assert "claim 'Pseudo-captions help' is not derived again" in said


@given(tables())
def test_the_derivation_agrees_with_the_estimator(table: Table) -> None:
    delta = Estimator(table).difference("a", "b")
    arms = {name: {str(seed): value for seed, value in seeds.items()} for name, seeds in table.items()}
    found = _by_all_arms(arms["a"], arms["b"], list(arms.values()))
    n, mean, sd, low, high, p, error, df = found.numbers
    assert delta is not None
    assert (n, mean) == pytest.approx((delta.n, delta.mean))
    assert sd == pytest.approx(delta.sd)
    if delta.interval is None:
        assert (low, high, p, error, df) == (None,) * 5
    else:
        assert (low, high, p) == pytest.approx((delta.interval.low, delta.interval.high, delta.p), rel=1e-6, abs=1e-12)
        assert (error, df) == pytest.approx((delta.error, delta.df))
        assert found.equality_p(0.01) == pytest.approx(equality_p(delta, 0.01), rel=1e-6, abs=1e-12)


@given(
    st.integers(1, 4), st.integers(4, 40), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([None, 1.0, 3.5])
)
def test_the_two_errors_agree_with_the_crossed_model(
    seeds: int, samples: int, group: int, seed: int, df: float | None
) -> None:
    values = np.random.default_rng(seed).integers(-1, 2, (seeds, samples)).astype(np.float64)
    groups = np.arange(samples) // group
    theirs = sample_error(values, groups)
    assume(theirs is not None)
    assert theirs is not None
    means = [float(row.mean()) for row in values]
    error = None if df is None else 0.05
    delta = difference_of(seeds, statistics.fmean(means), None, error, df)
    ours = _two_errors(
        [
            {(str(one), str(place)): value for place, (one, value) in enumerate(zip(groups, row, strict=True))}
            for row in values
        ],
        Derived(seeds, delta.mean, None, error, df),
    )
    intervals = [delta.interval, theirs.interval, theirs.both(delta)]
    bounds = [bound for one in intervals for bound in ((None, None) if one is None else (one.low, one.high))]
    assert agree([*bounds, theirs.error], ours)


def test_two_errors_that_were_changed_or_cannot_be_derived(tmp_path: Path) -> None:
    results = reported(tmp_path).results
    store, text = Store(tmp_path), render(results, "json")
    whole = verified(text, store)
    assert whole.problems == []
    changed = json.loads(text)
    changed["errors"][0]["both"]["high"] += 1e-4
    assert any("two errors of other says" in one for one in verified(json.dumps(changed), store).problems)
    folder = store.run(results.plan.cells["other", 1])
    (file,) = folder.outcomes.iterdir()
    sound = file.read_bytes()
    file.write_bytes(b"no Parquet")
    damaged = verified(text, store)
    assert damaged.problems == [], "what is wrong with a run's files is told with the run, once"
    assert "the report's two errors of other are not derived again" in "\n".join(damaged.unproven)
    file.write_bytes(sound)
    shutil.rmtree(store.run(results.plan.cells["other", 2]).outcomes)
    part = verified(text, store)
    assert part.problems == []
    assert part.report == whole.report - 7
    assert "the report's two errors of other are not derived again" in "\n".join(part.unproven)


@pytest.mark.parametrize(
    ("metric", "rows", "expected"),
    [
        ("acc5", [{"key": "a", "rank": 5}, {"key": "b", "rank": 6}], {("a", ""): 1.0, ("b", ""): 0.0}),
        (
            "image_retrieval_recall@1",
            [
                {"direction": "image_retrieval", "key": "a", "caption": 0, "rank": 1},
                {"direction": "image_retrieval", "key": "a", "caption": 1, "rank": 2},
                {"direction": "text_retrieval", "key": "a", "caption": 0, "rank": 1},
            ],
            {("a", "0"): 1.0, ("a", "1"): 0.0},
        ),
        (
            "acc",
            [
                {"image": "i", "key": "a", "texts": 2, "images": 2, "found_texts": True, "found_images": False},
                {"image": "i", "key": "b", "texts": 1, "images": 1, "found_texts": True, "found_images": True},
            ],
            {("i", "a"): 0.0},
        ),
    ],
)
def test_hits_of_single_samples(
    metric: str, rows: list[dict[str, Any]], expected: dict[tuple[str, str], float]
) -> None:
    assert dict(_hits(metric, rows)) == expected
