"""From an ablation to its runs: each once, teachers first, in the numbers that were declared."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from harness.base.errors import SpecError
from harness.config.data import Data
from harness.planning.plan import make_plan
from harness.runs.record import DataReport
from tests.head.made import MINING, ablation, experiment, looked_at, plan_of

MINED = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}
TAUGHT = {**MINED, "captions": {"count": 2}}


def test_arms_times_seeds() -> None:
    plan = plan_of(ablation({"a": {}, "b": {"captions": {"count": 1}}}, seeds=[4, 7]))
    assert list(plan.cells) == [("a", 4), ("a", 7), ("b", 4), ("b", 7)]
    assert len(plan.runs) == len(set(plan.cells.values())) == 4
    assert plan.ids("b") == {4: plan.cells["b", 4], 7: plan.cells["b", 7]}
    assert [plan.runs[run].experiment.seed for run in plan.cells.values()] == [4, 7, 4, 7]
    assert {run.role for run in plan.runs.values()} == {"arm"}
    assert {run.steps for run in plan.runs.values()} == {300}


def test_a_seed_keeps_its_runs_when_seeds_are_added() -> None:
    few, many = (plan_of(ablation({"a": {}}, seeds=number)) for number in (2, 5))
    assert few.runs.keys() < many.runs.keys()


def test_a_run_has_one_id_whichever_ablation_asks_for_it() -> None:
    one = plan_of(ablation({"a": {}, "b": {"captions": {"count": 1}}}))
    other = plan_of(ablation({"x": {"captions": {"count": 1}}, "y": {"captions": {"count": 2}}}, question="else?"))
    assert one.ids("b") == other.ids("x")


def test_axes_and_arms_multiply() -> None:
    axes = {"captions.count": [0, 2], "train.schedule": ["cosine", "linear"]}
    plan = plan_of(ablation({"a": {}, "b": {"loss.kind": "multi_positive_sigmoid"}}, axes=axes, baseline=
                            "a, captions.count=0, train.schedule=cosine", seeds=2))  # fmt: skip
    assert len(plan.arms) == 8
    assert len(plan.runs) == 16
    arm = plan.arm("b, captions.count=2, train.schedule=linear").experiment
    assert (arm.loss.kind, arm.captions.count, arm.train.schedule) == ("multi_positive_sigmoid", 2, "linear")


def test_one_teacher_serves_all_arms_and_seeds_and_is_trained_first() -> None:
    plan = plan_of(ablation({"a": {}, "b": MINED, "c": TAUGHT}))
    (teacher,) = [run for run in plan.runs.values() if run.role == "teacher"]
    assert (teacher.steps, teacher.experiment.seed) == (1000, 0)
    taught = {run.id for run in plan.runs.values() if run.teacher is not None}
    assert taught == {*plan.ids("b").values(), *plan.ids("c").values()}
    assert {plan.runs[run].teacher for run in taught} == {teacher.id}
    order = list(plan.runs)
    assert all(order.index(teacher.id) < order.index(run) for run in taught)
    assert len(plan.runs) == 10


def test_a_teacher_is_shared_between_ablations() -> None:
    one, other = (plan_of(ablation({"a": arm}, seeds=1)) for arm in (MINED, TAUGHT))
    assert one.runs.keys() & other.runs.keys() == {run.id for run in one.runs.values() if run.role == "teacher"}


def test_a_teacher_that_is_an_arm_too_is_one_run() -> None:
    teacher = {"captions": {"source": ()}, "train": {"duration": "1000 steps"}, "teacher": None}
    for arms in ({"mined": MINED, "teacher": teacher}, {"teacher": teacher, "mined": MINED}):
        plan = plan_of(ablation(arms, seeds=1))
        assert len(plan.runs) == 2
        taught, own = plan.runs[plan.cells["mined", 0]], plan.runs[plan.cells["teacher", 0]]
        assert (taught.teacher, own.role) == (own.id, "arm")
        assert list(plan.runs) == [own.id, taught.id]
        assert own.experiment.evaluation.sets == ("shapes",)  # the arm's, not the teacher's


def test_teachers_of_teachers_come_first() -> None:
    lowest = {"train": {"global_batch_size": 64, "duration": "7 steps"}}
    middle = {
        **MINED,
        "teacher": {"kind": "experiment", "experiment": lowest},
        "train": {"global_batch_size": 128, "duration": "9 steps"},
    }
    one = experiment(teacher={"kind": "experiment", "experiment": middle}, **MINED)
    plan = plan_of(ablation({"a": {}}, experiment=one, seeds=1))
    assert [run.steps for run in plan.runs.values()] == [7, 9, 300]
    first, second, third = plan.runs.values()
    assert (first.teacher, second.teacher, third.teacher) == (None, first.id, second.id)


def test_unused_teachers_are_not_trained() -> None:
    assert all(run.role == "arm" for run in plan_of(ablation({"a": {}})).runs.values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"captions.count": 2}, {"captions.count": (0, 2), "captions.source": ([], ["captioner"])}),
        ({"train.optimiser.lr": 1}, {"train.optimiser.lr": (0.001, 1)}),
        ({"teacher": None}, {}),  # it was not used
        ({"mining": {"kind": "none"}, "seed": 3, "evaluation.prefix": "x"}, {"seed": (0, 3)}),
        ({"train": {"augment": {"kind": "crop", "flip": 0}}}, {
            "train.augment.kind": ("none", "crop"), "train.augment.flip": (None, 0),
            "train.augment.min_scale": (None, 0.5), "train.augment.max_scale": (None, 1)}),
    ],
)  # fmt: skip
def test_differences_are_exactly_what_can_change_a_result(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    plan = plan_of(ablation({"a": {}, "b": {"captions.text": "lower", **changes}}))
    assert plan.differences("b") == expected | {"captions.text": ("none", "lower")}
    assert plan.differences("a") == {}


def test_another_kind_differs_in_all_its_fields() -> None:
    found = plan_of(ablation({"a": {}, "b": {"loss": {"kind": "sigmoid"}}})).differences("b")
    assert {path.partition(".")[0] for path in found} == {"loss"}
    assert (found["loss.kind"], found["loss.slotwise"]) == (("infonce", "sigmoid"), (None, False))


def test_a_teacher_that_comes_into_use_is_a_difference() -> None:
    paths = plan_of(ablation({"a": {}, "b": MINED})).differences("b")
    assert {path.partition(".")[0] for path in paths} == {"mining", "loss", "teacher"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"captions.count": 0},
        {"evaluation.sets": ["other"]},
        {"seed": 5},
        {"teacher": None},
        {"captions.mixing": "sample"},
    ],
)
def test_two_arms_that_are_the_same_run(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(ablation({"a": {}, "b": changes}))
    fix = "remove one of them, or change a field that can change a result"
    assert str(caught.value) == f"made.toml: arms 'a' and 'b' are the same run; {fix}"


def test_two_cells_that_are_the_same_run() -> None:
    axes = {"captions.count": [0, 1], "captions.mixing": ["all", "sample"]}
    with pytest.raises(SpecError, match="are the same run; leave one out with `exclude`, or change a field") as caught:
        plan_of(ablation(axes=axes, baseline="captions.count=0, captions.mixing=all"))
    assert "'captions.count=0, captions.mixing=sample'" in str(caught.value)
    left = ablation(axes=axes, exclude=[{"captions.count": 0, "captions.mixing": "sample"}],
                    baseline="captions.count=0, captions.mixing=all", seeds=1)  # fmt: skip
    assert len(plan_of(left).runs) == 3


def test_base_changes_every_arm_and_no_arm_counts_it_as_its_own() -> None:
    plan = plan_of(ablation({"a": {}, "b": {"captions.count": 1}}, base={"train.duration": "5 steps"}, seeds=1))
    assert [run.steps for run in plan.runs.values()] == [5, 5]
    assert [arm.changes for arm in plan.arms] == [{}, {"captions.count": 1}]


def test_an_arms_kind_does_away_with_the_fields_that_base_set_for_another_kind() -> None:
    stated = ablation({"a": {}, "b": {"loss.kind": "sigmoid"}}, base={"loss.normaliser": "slotwise"}, seeds=1)
    assert [arm.experiment.loss.kind for arm in plan_of(stated).arms] == ["infonce", "sigmoid"]


def test_labels() -> None:
    plan = plan_of(ablation({"a": {}, "b": {"captions.count": 1}}, labels={"b": "With captions"}))
    assert [(arm.name, arm.label) for arm in plan.arms] == [("a", "a"), ("b", "With captions")]


def test_steps() -> None:
    arms = {"epochs": {"train.duration": "2 epochs"}, "samples": {"train.duration": "1000 samples"}}
    plan = plan_of(ablation(arms, seeds=1), samples=1000)
    assert {name: plan.runs[plan.cells[name, 0]].steps for name in arms} == {"epochs": 14, "samples": 7}


def test_data_is_looked_at_once() -> None:
    looked: Counter[str] = Counter()

    def look(data: Data) -> DataReport:
        looked[data.model_dump_json()] += 1
        return looked_at()(data)

    arms = {f"a{n}": {"train.optimiser.lr": n / 100, "data.train_samples": 8192} for n in range(1, 9)}
    arms |= {"other": {"data.seed": 3}}
    plan = make_plan(ablation(arms), name="made", where="f", inspect=look)
    assert sorted(looked.values()) == [1, 1]
    assert len(plan.data) == 2


def test_a_plan_without_its_data_is_provisional() -> None:
    def look(data: Data) -> DataReport:
        return DataReport(fingerprint="missing-x", missing="x.tar: the shard is missing")

    plan = make_plan(ablation({"a": {}, "b": MINED}), name="made", where="f", inspect=look)
    assert plan.missing_data == ("x.tar: the shard is missing",)
    assert {run.steps for run in plan.runs.values()} == {0}
    assert len(plan.runs) == 7


@pytest.mark.parametrize(("arms", "seeds"), [(1000, 10), (10_000, 1)])
def test_ten_thousand_runs(arms: int, seeds: int) -> None:
    """That each is planned once; how long it takes is measured elsewhere."""
    axes = {"train.optimiser.lr": [number / 1e6 for number in range(1, arms + 1)]}
    one = ablation(axes=axes, base=MINED, baseline="train.optimiser.lr=1e-06", seeds=seeds)
    plan = plan_of(one)
    assert len(plan.runs) == 10_001
    assert len(plan.cells) == len(set(plan.cells.values())) == 10_000
    last = plan.arms[-1].name
    assert plan.differences(last) == {"train.optimiser.lr": (1e-06, arms / 1e6)}
    assert len(plan.ids(last)) == seeds
