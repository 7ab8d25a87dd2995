"""`harness verify` derives the statistics of a report over several seeds, by code of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from harness.execute.verify import Verification, _by_all_arms, verify_report
from harness.reporting import collect, render
from harness.runs.store import Store
from harness.statistics import Estimator
from tests.reporting.made import LEVELS, QUICKSTART, fill, plan_of, quickstart
from tests.test_arms import Table, tables


def verified(report: str, store: Store) -> Verification:
    found = Verification()
    for run in store.runs():
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
    )
    for change in changes:
        report = json.loads(text)
        change(report["claims"][0])
        (problem,) = (one for one in verified(json.dumps(report), store).problems if "train/" not in one)
        assert "claim 'Pseudo-captions help'" in problem


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
    n, mean, sd, low, high, p = _by_all_arms(arms["a"], arms["b"], list(arms.values()))
    assert delta is not None
    assert (n, mean) == pytest.approx((delta.n, delta.mean))
    assert sd == pytest.approx(delta.sd)
    if delta.interval is None:
        assert (low, high, p) == (None, None, None)
    else:
        assert (low, high, p) == pytest.approx((delta.interval.low, delta.interval.high, delta.p), rel=1e-6, abs=1e-12)
