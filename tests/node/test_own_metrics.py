"""A metric in a user's Python file: measured on finished runs from cached features, identified by its content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import worker
from harness.base.errors import SpecError
from harness.base.exit_status import BROKEN, USER_ERROR
from harness.config.evaluation import Evaluation, PythonMetric
from harness.evaluation.conformance import check_metric_part
from harness.evaluation.outcomes import read_outcomes
from harness.execute.verify import Verification, verify_run
from harness.reporting.collect.comparison import compare_arms
from harness.reporting.collect.results import collect
from tests.head.made import is_one_sentence
from tests.head.own_parts import METRIC, in_this_process
from tests.node.small import prepared, project
from tests.node.test_metric_identity import carried_out, ids, missing, no_passes, planned, values

__all__ = ["in_this_process", "no_passes"]
pytestmark = pytest.mark.usefixtures("in_this_process")
NAME = "shapes/ReciprocalRank"
RECALLED = (
    METRIC.replace("ReciprocalRank", "CaptionRank")
    .replace("zeroshot_classification", "zeroshot_retrieval")
    .replace("found.ranks", "found.of_captions")
    .replace("found: Classified", "found")
)


def metric(folder: Path, text: str = METRIC, name: str = "ReciprocalRank", **parameters: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return {"kind": "python", "file": str(folder / f"{name}.py"), "name": name, **parameters}


def test_it_is_measured_on_a_finished_run_from_cached_features(tmp_path: Path, no_passes: list[str]) -> None:
    folder = carried_out(tmp_path, planned(tmp_path))
    before, run = folder.record(), planned(tmp_path).cells["a", 0]
    no_passes.clear()
    own = [metric(tmp_path / "own"), metric(tmp_path / "own", RECALLED, "CaptionRank", depth=3)]
    plan = planned(tmp_path, metrics=own)
    assert plan.cells["a", 0] == run, "a metric is not part of a run's id"
    assert missing(tmp_path, plan).metrics == (NAME, "shapes_retrieval/CaptionRank")
    carried_out(tmp_path, plan)
    after = folder.record()
    assert no_passes == []
    assert not missing(tmp_path, plan)
    assert ids(before).items() <= ids(after).items()
    assert values(before).items() <= values(after).items()
    assert [one.protocol_id for one in after.evaluations] == [one.protocol_id for one in before.evaluations]
    ranks = {}
    for file in folder.outcomes.glob("*.parquet"):
        found = read_outcomes(file)
        ranks[found.set] = found.columns["rank"]
        if name := {"shapes": "ReciprocalRank", "shapes_retrieval": "CaptionRank"}[found.set]:
            kept = found.columns.get(name)
            assert kept is None or np.nanmean(kept) == pytest.approx(values(after)[f"{found.set}/{name}"])
    assert values(after)[NAME] == pytest.approx(np.mean(np.where(ranks["shapes"] <= 10, 1 / ranks["shapes"], 0)))
    verified = Verification()
    verify_run(folder, verified)
    assert (verified.problems, verified.unproven) == ([], [])
    assert verified.metrics == len(values(after))
    edited = planned(tmp_path, metrics=[metric(tmp_path / "own", METRIC + "\n# edited\n"), own[1]])
    assert missing(tmp_path, edited).metrics == (NAME,), "an edited metric is another one"
    assert not missing(tmp_path, planned(tmp_path, metrics=[metric(tmp_path / "own")])), "the old one is still there"
    assert missing(tmp_path, planned(tmp_path, metrics=[metric(tmp_path / "own", depth=2)])).metrics == (NAME,)
    metric(tmp_path / "own", METRIC)
    assert compare_arms(collect(plan, project(tmp_path).store), NAME).arms["a"].values[0] == values(after)[NAME]


def test_it_is_measured_along_the_way_and_from_its_own_copy(tmp_path: Path) -> None:
    plan = planned(tmp_path, metrics=[metric(tmp_path / "own")], every="4 steps")
    folder = prepared(tmp_path, plan.runs[plan.cells["a", 0]])
    shutil.rmtree(tmp_path / "own")
    assert worker.main(folder.path) == worker.DONE
    lines = [line.values[NAME] for line in folder.step_metrics() if NAME in line.values]
    assert len(lines) == 1
    assert 0 < lines[0] <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("1.0 / found.ranks", "np.inf / found.ranks"), "gives values on shapes that are not finite"),
        (
            ("return np", "return 1 + 0 * found.logits[0][:5].numpy() if True else np"),
            "gives values of shape [",
        ),
        (("found.ranks <=", "found.rank <="), "ReciprocalRank.py, line 31 (return np.where(found.rank"),
    ],
)
def test_what_it_does_wrong_is_a_sentence(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in METRIC
    plan = planned(tmp_path, metrics=[metric(tmp_path / "own", METRIC.replace(*change))])
    folder = prepared(tmp_path, plan.runs[plan.cells["a", 0]])
    assert worker.main(folder.path) in (BROKEN, USER_ERROR)
    assert said in folder.failure().message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (METRIC.replace("ReciprocalRank", "acc1"), "acc1 has a name that a built-in metric may get"),
        (METRIC.replace('"zeroshot_classification"', '"zeroshot"'), "does not state task; write `task: ClassVar = `"),
        (METRIC.replace("(SampleMetric)", ""), "does not derive from EvaluationMetric"),
        (METRIC.replace("def values", "def value"), "does not define values"),
    ],
)
def test_bad_classes_are_refused(tmp_path: Path, text: str, said: str) -> None:
    name = "acc1" if "class acc1" in text else "ReciprocalRank"
    with pytest.raises(ValueError, match=said.partition("`")[0]):
        Evaluation.model_validate({"metrics": [metric(tmp_path, text, name)]})


def test_names_are_unique(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='two metrics are called "ReciprocalRank"; derive a class'):
        Evaluation.model_validate({"metrics": [metric(tmp_path), metric(tmp_path, depth=2)]})


def checked(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = METRIC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return [one.problem for one in check_metric_part(PythonMetric.model_validate(metric(folder, text)))]


@pytest.mark.parametrize(
    "task", ["zeroshot_classification", "linear_probe", "zeroshot_retrieval", "zeroshot_multilabel"]
)
def test_the_conformance_suite_passes_good_metrics(tmp_path: Path, task: str) -> None:
    values = {
        "zeroshot_retrieval": "(found.features[0][found.owner] * found.features[1]).sum(1).numpy()",
        "zeroshot_multilabel": "(found.targets * found.logits).sum(1).numpy()",
    }.get(task, "np.where(found.ranks <= self.spec.depth, 1.0 / found.ranks, 0.0)")
    old = "np.where(found.ranks <= self.spec.depth, 1.0 / found.ranks, 0.0)"
    assert checked(tmp_path, ("zeroshot_classification", task), (old, values)) == ["", "", ""]


@pytest.mark.parametrize(
    ("value", "failing", "said"),
    [
        ("np.full(len(found.ranks), np.nan)", 0, "gives values on a random set that are not finite"),
        ("found.ranks[1:] * 1.0", 0, "gives values of shape [11] on a random set, which has 12 samples"),
        ("None", 0, "it gives no value on a set of 12 samples"),
        ("np.random.rand(len(found.ranks))", 1, "measured again, its value is another"),
        ("found.ranks.sort() or found.ranks * 1.0", 1, "it changes ranks, which other metrics read"),
        ("np.arange(len(found.ranks)) * found.ranks", 2, "its value changes if the samples are permuted"),
        ("np.arange(len(found.ranks)) * 1.0", 2, "the values of its samples change if the samples are permuted"),
    ],
)
def test_the_conformance_suite_says_what_fails(tmp_path: Path, value: str, failing: int, said: str) -> None:
    old = "np.where(found.ranks <= self.spec.depth, 1.0 / found.ranks, 0.0)"
    assert said in checked(tmp_path, (old, value))[failing]


def test_errors_are_sentences(tmp_path: Path) -> None:
    spec = PythonMetric.model_validate(metric(tmp_path))
    (tmp_path / "ReciprocalRank.py").write_text(METRIC + "# edited")
    with pytest.raises(SpecError, match="was changed since the spec was read") as caught:
        spec.built()
    assert is_one_sentence(caught.value)
