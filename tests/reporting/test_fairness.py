from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.evaluation.evaluator import _cut_notes
from harness.planning.plan import Plan
from harness.reporting import Results, collect
from harness.reporting.sections.document import Document
from harness.runs.record import Cost, DataReport
from harness.runs.store import Store
from tests.reporting.made import VERSIONS, evaluations, fail, finish, plan_of, simple

ARMS = {"a": [0.20, 0.22], "b": [0.30, 0.33]}


def remarks(results: Results) -> list[tuple[str, str]]:
    # the data set of every made plan has rejected samples
    return [(flag.level, flag.text) for flag in Document(results).flags if "12 no caption" not in flag.text]


def changed(root: Path, arm: str = "b", seed: int = 0, **fields: Any) -> list[tuple[str, str]]:
    plan, store = simple(root, ARMS)
    finish(store, plan.cells[arm, seed], {"shapes/acc1": 0.3}, **fields)
    return remarks(collect(plan, store))


def test_equal_runs_raise_no_remark(tmp_path: Path) -> None:
    assert remarks(collect(*simple(tmp_path, ARMS))) == []


def test_captions_that_the_context_cuts_are_a_note(tmp_path: Path) -> None:
    cut = tuple(one.model_copy(update={"notes": tuple(_cut_notes(0.25))}) for one in evaluations({"shapes/acc1": 0.3}))
    told = (
        "Evaluation set shapes: 25.0% of the captions are longer than the model's context, which leaves out their ends."
    )
    assert changed(tmp_path, evaluations=cut) == [("note", told)]


def test_samples_that_data_lost_are_told(tmp_path: Path) -> None:
    flags = Document(collect(*simple(tmp_path, ARMS))).flags
    assert [flag.text for flag in flags] == [
        "Data 5a3c9e01b7d2: 8,192 of 8,204 samples are trained on; left out: 12 no caption."
    ]


def test_samples_seen_that_nothing_explains(tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {name: {"train.duration": "2 epochs"} for name in ("a", "b")}
    arms["b"]["train.optimiser.lr"] = 0.01
    plan, store = (
        plan_of({"question": "?", "baseline": "a", "seeds": 1, "primary": "shapes/acc1", "arms": arms}),
        Store(tmp_path),
    )
    fewer = DataReport(fingerprint="5a3c9e01b7d2", samples=7000)
    finish(store, plan.cells["a", 0], {"shapes/acc1": 0.3})
    finish(store, plan.cells["b", 0], {"shapes/acc1": 0.3}, data=fewer, steps=108, samples_seen=13824, epochs=2.0)
    said = "b: 13,824 samples seen, the baseline 16,384, and nothing that the ablation declares explains it."
    assert ("warning", said) in remarks(collect(plan, store))


def test_samples_seen_that_follow_from_a_declared_batch_size_are_a_note(tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {"small": {}, "large": {"train.global_batch_size": 256}}
    table = {"question": "?", "baseline": "small", "seeds": 1, "primary": "shapes/acc1", "arms": arms}
    plan, store = plan_of(table), Store(tmp_path)
    finish(store, plan.cells["small", 0], {"shapes/acc1": 0.3})
    finish(store, plan.cells["large", 0], {"shapes/acc1": 0.3})
    found = remarks(collect(plan, store))
    said = "large: 76,800 samples seen, the baseline 38,400 (follows from train.global_batch_size)."
    assert ("note", said) in found
    assert not [text for level, text in found if level == "warning"]


def test_versions_and_devices_that_differ(tmp_path: Path) -> None:
    (found,) = changed(tmp_path, versions={**VERSIONS, "torch": "2.6.0"})
    assert found == ("warning", "Runs were made with different torch: 2.15.0 (3 runs), 2.6.0 (1 run).")
    cost = Cost(duration_s=1, evaluation_s=1, images_per_s=1, peak_memory_gb=1, device="cuda", threads=1)
    (found,) = changed(tmp_path, cost=cost)
    assert found == ("warning", "Runs were made with different device: cpu (3 runs), cuda (1 run).")


def test_another_commit_is_only_a_note(tmp_path: Path) -> None:
    (found,) = changed(tmp_path, versions={**VERSIONS, "commit": "ffffff"})
    assert found[0] == "note"


def test_runs_without_a_result_come_first(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.2, 0.3], "b": [0.3]})
    fail(store, plan.cells["b", 1], "crashed", "boom")
    found = remarks(collect(plan, store))
    assert found[0] == ("warning", "1 run of 4 without a result: 1 failed: crashed.")
    assert found[1][1].startswith("One seed of b:")


def test_one_seed_is_said_once_for_all_arms(tmp_path: Path) -> None:
    found = remarks(collect(*simple(tmp_path, {"a": [0.2], "b": [0.3]})))
    text = "One seed of every arm: it has no spread and no interval, and nothing is claimed from it."
    assert found == [("note", text)]


def test_long_lists_of_arms_are_cut(tmp_path: Path) -> None:
    arms = {f"arm{place}": [0.2] for place in range(9)}
    plan, store = simple(tmp_path, arms)
    for (arm, _), run_id in plan.cells.items():
        if arm != "arm0":
            finish(store, run_id, {"shapes/acc1": 0.3}, versions={**VERSIONS, "torch": "2.6.0"})
    assert "; and 4 more with none of the baseline's." in _texts(plan, store)[0]


def _texts(plan: Plan, store: Store) -> list[str]:
    return [text for _, text in remarks(collect(plan, store))]


def test_a_batch_and_a_precision_that_the_ablation_declares_are_notes(tmp_path: Path) -> None:
    arms: dict[str, dict[str, Any]] = {
        "plain": {},
        "half": {"train.precision": "bfloat16", "train.global_batch_size": 64, "train.duration": "600 steps"},
    }
    table = {"question": "?", "baseline": "plain", "seeds": 1, "primary": "shapes/acc1", "arms": arms}
    plan, store = plan_of(table), Store(tmp_path)
    finish(store, plan.cells["plain", 0], {"shapes/acc1": 0.3})
    finish(store, plan.cells["half", 0], {"shapes/acc1": 0.3})
    found = remarks(collect(plan, store))
    why = "(follows from train.duration, train.global_batch_size)."
    assert ("note", f"half: 64 images a step, the baseline 128 {why}") in found
    assert ("note", "half: trained in bfloat16, the baseline in float32 (declared).") in found
    assert not [text for level, text in found if level == "warning"]


def test_data_of_which_less_survived(tmp_path: Path) -> None:
    (found,) = changed(tmp_path, data=DataReport(fingerprint="5a3c9e01b7d2", samples=7000))
    said = "b: trained on other data than the baseline (7,000 or 8,192 samples against 8,192), which is not declared."
    assert found == ("warning", said)


def test_code_that_goes_with_the_arm_is_a_warning(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, ARMS)
    for seed in range(2):
        finish(store, plan.cells["b", seed], {"shapes/acc1": 0.3}, versions={**VERSIONS, "commit": "9f9f9f9"})
    assert remarks(collect(plan, store)) == [
        (
            "warning",
            "Runs were made with different commit: 1a2b3c4 (2 runs), 9f9f9f9 (2 runs); b with none of the baseline's.",
        )
    ]


def test_reported_numbers_whose_protocol_is_not_known(tmp_path: Path) -> None:
    known = {"arm": "a", "metric": "shapes/acc1", "value": 0.2, "source": "Table 1", "protocol": "7 prompts"}
    unknown = {"arm": "b", "metric": "shapes/acc1", "value": 0.2, "source": "Table 1"}
    found = remarks(collect(*simple(tmp_path, ARMS, references=[known, unknown])))
    said = "How one reported number of 2 was measured is not known: shown beside ours, but not under the same protocol."
    assert found == [("note", said)]
