"""A metric that is new, a k that is new, a definition that changed: what stays comparable, and what is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.config.ablation import Ablation
from harness.config.evaluation import Evaluation
from harness.evaluation.measured import Classified
from harness.evaluation.metrics import proportion
from harness.evaluation.registry import MetricDefinition, registered
from harness.evaluation.towers import SetEncoder
from harness.node.stop import Stop
from harness.planning.completeness import Completeness, Missing
from harness.planning.plan import Plan
from harness.reporting.collect.comparison import compare_arms
from harness.reporting.collect.results import collect
from harness.runs.folder import RunFolder
from harness.runs.metrics import metric_id
from harness.runs.record import EvaluationResult, Metric, Record
from tests.node.small import experiment, prepared, project

SETS = ("shapes", "shapes_retrieval")


def second(found: Classified, _: int) -> Metric:
    """How often the label comes second."""
    return proportion(found.ranks == 2)


SECOND = MetricDefinition("second", "share of samples whose label has the second highest logit", second)


def planned(root: Path, seeds: int = 1, **evaluation: Any) -> Plan:
    one = experiment(evaluation={"sets": SETS, **evaluation}, teacher=None)
    table = {"question": "?", "baseline": "a", "arms": {"a": {}}, "seeds": seeds, "primary": "shapes/acc1"}
    return project(root).plan(Ablation.model_validate({**table, "experiment": one}))


def carried_out(root: Path, plan: Plan, seed: int = 0) -> RunFolder:
    folder = prepared(root, plan.runs[plan.cells["a", seed]])
    assert worker.main(folder.path, Stop()) == worker.DONE
    return folder


def missing(root: Path, plan: Plan) -> Missing:
    at = project(root)
    return Completeness(at.store, at.settings).missing(plan.runs[plan.cells["a", 0]])


def ids(record: Record) -> dict[str, str]:
    return {f"{one.set}/{name}": metric_id(one, name) for one in record.evaluations for name in one.metrics}


def values(record: Record) -> dict[str, float]:
    return {f"{one.set}/{name}": metric.value for one in record.evaluations for name, metric in one.metrics.items()}


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Forward passes through a tower, which are not allowed."""
    passes: list[str] = []
    encode = SetEncoder._features

    def counted(self: SetEncoder, *arguments: Any) -> Any:
        passes.append(arguments[-1])
        return encode(self, *arguments)

    monkeypatch.setattr(SetEncoder, "_features", counted)
    return passes


def test_a_new_metric_leaves_old_ids_and_costs_no_pass_through_the_towers(tmp_path: Path, no_passes: list[str]) -> None:
    plan = planned(tmp_path, seeds=2)
    folder = carried_out(tmp_path, plan)
    other = carried_out(tmp_path, plan, 1)
    before = folder.record()
    assert not missing(tmp_path, plan)
    assert "image" in no_passes
    no_passes.clear()
    with registered("zeroshot_classification", SECOND):
        lacking = missing(tmp_path, plan)
        assert (lacking.sets, lacking.metrics) == (("shapes",), ("shapes/second",))
        assert str(lacking) == "results on shapes/second"
        carried_out(tmp_path, plan)
        assert no_passes == []
        after = folder.record()
        assert not missing(tmp_path, plan)
        assert [one.protocol_id for one in after.evaluations] == [one.protocol_id for one in before.evaluations]
        assert {name: one for name, one in ids(after).items() if name != "shapes/second"} == ids(before)
        assert {name: one for name, one in values(after).items() if name != "shapes/second"} == values(before)
        results = collect(plan, project(tmp_path).store)
        column, new = (compare_arms(results, f"shapes/{name}") for name in ("acc1", "second"))
        assert dict(column.arms["a"].values) == {
            0: values(after)["shapes/acc1"],
            1: values(other.record())["shapes/acc1"],
        }
        assert (column.arms["a"].left_out, column.arms["a"].foreign) == ((), False)
        assert list(new.arms["a"].values) == [0]
        assert new.identity != column.identity
    assert not missing(tmp_path, plan)  # the metric is not known any more, and nothing else is missing
    assert "shapes/second" not in collect(plan, project(tmp_path).store).runs[0].measured


def test_another_k_measures_that_k_alone(tmp_path: Path, no_passes: list[str]) -> None:
    folder = carried_out(tmp_path, planned(tmp_path))
    before = folder.record()
    no_passes.clear()
    more = planned(tmp_path, recall_k=(1, 3, 5, 10))
    names = ("shapes_retrieval/image_retrieval_recall@3", "shapes_retrieval/text_retrieval_recall@3")
    assert missing(tmp_path, more).metrics == names
    carried_out(tmp_path, more)
    after = folder.record()
    assert ids(before).items() <= ids(after).items()
    assert set(ids(after)) == {*ids(before), *names}
    assert len(after.evaluations) == len(before.evaluations)
    assert no_passes == []
    for plan in (more, planned(tmp_path), planned(tmp_path, recall_k=(3,))):
        assert not missing(tmp_path, plan)
    fewer = collect(planned(tmp_path, recall_k=(3,)), project(tmp_path).store).runs[0].measured
    assert {name for name in fewer if name.startswith("shapes_retrieval")} == set(names)


def test_a_definition_that_changed_is_another_metric(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with registered("zeroshot_classification", SECOND):
        folder = carried_out(tmp_path, plan)
        old = ids(folder.record())["shapes/second"]
    third = MetricDefinition("second", "share of samples whose label has the third highest logit", second)
    with registered("zeroshot_classification", third):
        assert missing(tmp_path, plan).metrics == ("shapes/second",)
        assert "shapes/second" not in collect(plan, project(tmp_path).store).runs[0].measured
        carried_out(tmp_path, plan)
        assert [one.set for one in folder.record().evaluations] == [*SETS, "shapes"]
        assert collect(plan, project(tmp_path).store).runs[0].measured["shapes/second"].metric_id != old
    with registered("zeroshot_classification", SECOND):
        assert not missing(tmp_path, plan)
        assert collect(plan, project(tmp_path).store).runs[0].measured["shapes/second"].metric_id == old


def test_records_of_before_give_the_same_ids_and_are_complete(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    folder = carried_out(tmp_path, plan)
    now = folder.record()
    table = json.loads(folder.record_file.read_text())
    del table["seal"]
    for one in table["evaluations"]:
        for new in ("undefined", "reference", "weights"):
            del one[new]
    folder.record_file.write_text(json.dumps(table))
    assert folder.record() != now
    assert ids(folder.record()) == ids(now)
    assert not missing(tmp_path, plan)
    with registered("zeroshot_classification", SECOND):
        assert missing(tmp_path, plan).metrics == ("shapes/second",)


@pytest.mark.parametrize("name", ["recall@5", "acc1"])
def test_each_part_of_a_metrics_identity_changes_its_id(name: str) -> None:
    def of(changes: Mapping[str, Any], metric: str = name) -> str:
        protocol = {"split": "test", "metrics": {"recall@k": "share", "acc1": "top", "acc5": "top five"}}
        table = {
            "set": "a",
            "task": "zeroshot_retrieval",
            "protocol_id": "p",
            "metrics": {metric: {"value": 0.5, "samples": 4}},
        }
        return metric_id(EvaluationResult.model_validate({**table, "protocol": {**protocol, **changes}}), metric)

    definitions = {"recall@k": "share", "acc1": "top", "acc5": "top five"}
    family = "recall@k" if "@" in name else name
    other = next(one for one in definitions if one != family)
    assert of({"metrics": {**definitions, "new": "x"}}) == of({})
    assert of({"metrics": {**definitions, other: "another"}}) == of({})
    assert of({"metrics": {**definitions, family: "another"}}) != of({})
    assert of({"split": "val"}) != of({})
    assert of({}, "recall@1") != of({}, "recall@5") != of({}, "acc1")


def test_a_set_that_does_not_define_a_metric_is_not_asked_again(tmp_path: Path) -> None:
    plan = planned(tmp_path, recall_k=(1, 5000))
    folder = carried_out(tmp_path, plan)
    (retrieval,) = (one for one in folder.record().evaluations if one.set == "shapes_retrieval")
    assert retrieval.undefined == ("image_retrieval_recall@5000", "text_retrieval_recall@5000")
    assert not missing(tmp_path, plan)
    assert not missing(tmp_path, planned(tmp_path, recall_k=(1,)))
    assert missing(tmp_path, planned(tmp_path, recall_k=(1, 6000))).metrics == (
        "shapes_retrieval/image_retrieval_recall@6000",
        "shapes_retrieval/text_retrieval_recall@6000",
    )
    assert Evaluation(recall_k=(5000, 1)).recall_k == (1, 5000)
