from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness.base.errors import StoreError
from harness.planning.plan import Plan
from harness.reporting import Results, collect, refuse_nothing
from harness.runs.folder import State
from harness.runs.store import Store
from tests.records import metric_in
from tests.reporting.made import QUICKSTART, fail, finish, plan_of, quickstart, record_of, simple


def test_every_cell_of_the_plan_is_there_in_order(results: Results) -> None:
    assert [(run.arm, run.seed) for run in results.runs] == list(results.plan.cells)
    assert [run.folder.id for run in results.runs] == list(results.plan.cells.values())
    assert len(results.done) == 15


def test_a_teacher_of_the_plan_is_reported_apart_from_the_arms(results: Results) -> None:
    (teacher,) = results.teachers
    assert teacher.record is not None
    assert teacher.record.steps == 1000
    assert teacher.planned.role == "teacher"


def test_values_are_those_of_the_record_file(finished: tuple[Plan, Store], results: Results) -> None:
    for run in results.runs:
        record = json.loads((finished[1].root / "runs" / run.folder.id / "record.json").read_text())
        for evaluation in record["evaluations"]:
            for name, metric in evaluation["metrics"].items():
                measured = run.measured[f"{evaluation['set']}/{name}"]
                assert measured.value == metric["value"]
                assert measured.standard_error == metric["standard_error"]
                assert measured.protocol_id == evaluation["protocol_id"]
        assert run.measured["train/loss"].value == record["final"]["loss"]


def test_what_has_no_record_says_why(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [math.nan] * 5, "b": [math.nan] * 5})
    ids = list(plan.ids("a").values())
    fail(store, ids[0], "out_of_memory", "asked for 9 GB")
    fail(store, ids[1], "interrupted", "Ctrl-C")
    (store.run(ids[1]).progress).write_text('{"step": 120, "steps": 300}')
    store.run(ids[2]).path.mkdir(parents=True)
    store.run(ids[2]).record_file.write_text('{"version": 1, "run_id"')
    with store.run(ids[3]).claimed():
        found = collect(plan, store).by_arm["a"]
    assert [run.cause for run in found] == [
        "failed: out_of_memory",
        "interrupted",
        "failed: damaged",
        "running",
        "missing",
    ]
    assert [run.message for run in found[:2]] == ["asked for 9 GB", "at step 120 of 300"]
    assert "record.json" in found[2].message
    assert found[2].state is State.FAILED


def test_a_damaged_record_spoils_no_other(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path)
    store.run(plan.cells["fff", 1]).record_file.write_text("{}")
    found = collect(plan, store)
    assert len(found.done) == 14
    assert [run.seed for run in found.by_arm["fff"] if run.record is None] == [1]


def test_protocols_are_kept_once(results: Results) -> None:
    assert sorted(results.protocols) == ["shapes-p1", "shapes_retrieval-p1"]
    protocols = {id(one.protocol) for run in results.done if run.record for one in run.record.evaluations}
    assert len(protocols) == 2


def test_a_record_that_shares_its_protocol_is_the_same_record(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5, 0.6]})
    written = [finish(store, run_id, {"shapes/acc1": 0.5}) for run_id in plan.cells.values()]
    assert [run.record for run in collect(plan, store).runs] == written


def test_metrics_are_listed_as_people_count_and_losses_before_the_rest(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [math.nan]})
    metrics = {f"shapes_retrieval/text_retrieval_recall@{k}": 0.1 for k in (1, 10, 5)} | {"shapes/acc1": 0.5}
    finish(
        store, plan.cells["a", 0], metrics, final={"grad_norm": 1.0, "images_per_s": 9.0, "loss": 2.0, "loss/a": 1.0}
    )
    results = collect(plan, store)
    assert results.sets["shapes_retrieval"] == tuple(f"text_retrieval_recall@{k}" for k in (1, 5, 10))
    assert results.finals == ("loss", "loss/a", "grad_norm", "images_per_s")


def test_a_record_answers_for_its_metrics() -> None:
    record = record_of("x", {"shapes/acc1": 0.5})
    metric = metric_in(record, "shapes/acc1")
    assert metric is not None
    assert (metric.value, metric_in(record, "shapes/acc5")) == (0.5, None)


def test_a_report_of_nothing_is_refused_and_one_of_failures_is_not(tmp_path: Path) -> None:
    plan, store = plan_of(QUICKSTART), Store(tmp_path)
    with pytest.raises(StoreError, match=r"nothing to report: none of its 15 runs has begun.*harness run"):
        refuse_nothing(collect(plan, store))
    fail(store, plan.cells["fff", 0], "crashed", "a reason")
    refuse_nothing(collect(plan, store))
