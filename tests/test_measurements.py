"""Two specs that share runs and differ in how they measure: each gets its own numbers, from every reader.

A store that many specs share is compared with a store that a spec has for itself. Runs take three steps.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.config.ablation import Ablation
from harness.config.search import Search
from harness.node.stop import Stop
from harness.planning.completeness import Completeness
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.reporting import render
from harness.reporting.collect.curves import read_curves
from harness.reporting.collect.results import collect
from harness.runs.folder import RunFolder
from harness.runs.settings import Settings
from harness.runs.store import Store
from harness.searching.configurations import Configurations
from harness.tracking.projection import arm_entry, cells_of, line_points, run_entry
from tests.evaluation.worlds import classification_members, retrieval_members, write_set
from tests.node.small import experiment, prepared
from tests.node.test_tokens import VIT
from tests.tracking.world import rows

CLASSES = 6
NAMES = {"classnames.txt": "".join(f"thing number {index}\n" for index in range(CLASSES))}
TEMPLATES = {"zeroshot_classification_templates.txt": "a photo of a {c}.\n"}
PRIMARY = "mine/acc1"
BASE: dict[str, Any] = {"sets": ["./e1/mine", "./e1/captions"], "every": "1 steps"}
CHANGES: dict[str, dict[str, Any]] = {
    "templates": {"templates": ["{c}", "no {c} at all"]},
    "prefix": {"prefix": "a photo of"},
    "precision": {"precision": "bfloat16"},
    "split": {"split": "val"},
    "text_normalisation": {"text_normalisation": "lowercase"},
    "recall_k": {"recall_k": [2]},
    "similarity": {"similarity": "token_wise"},
    "sets": {"sets": ["./e2/mine", "./e2/captions"]},
}


def made_sets(root: Path) -> None:
    """Sets of the same names at two paths, with two splits of other samples each."""
    for place, first in (("e1", 0), ("e2", 40)):
        for split, more in (("test", 0), ("val", 20)):
            start = first + more
            labels = [(start + index * 5) % CLASSES for index in range(12)]
            captions = [[f"Caption {j} of Picture {i + start}" for j in range(1 + i % 3)] for i in range(8)]
            mine = [classification_members(labels, start)]
            write_set(root / place / "mine", mine, NAMES | TEMPLATES, split)
            kind = {"dataset_type.txt": "retrieval"}
            write_set(root / place / "captions", [retrieval_members(captions, start)], kind, split)


@dataclass(frozen=True)
class Place:
    """A project with a store of its own, beside the sets."""

    root: Path

    @property
    def project(self) -> Project:
        return Project(Settings(store=self.root / "store", tracking_uri="none"), Store(self.root / "store"))

    def plan(self, evaluation: Mapping[str, Any], name: str = "a") -> Plan:
        one = experiment(
            evaluation={**BASE, **evaluation},
            teacher=None,
            model={"name": "small", "config": VIT},
            train={"duration": "3 steps", "global_batch_size": 16, "schedule": "constant"},
        )
        table = {"question": "?", "baseline": "a", "arms": {"a": {}}, "seeds": 1, "primary": PRIMARY}
        return self.project.plan(Ablation.model_validate({**table, "experiment": one}), name=name)

    def carry_out(self, plan: Plan) -> RunFolder:
        """Do what is missing, in this process."""
        (run,) = plan.runs.values()
        at = self.project
        folder = at.store.run(run.id)
        if not Completeness(at.store, at.settings).is_complete(run):
            assert prepared(self.root, run).path == folder.path
            assert worker.main(folder.path, Stop()) == worker.DONE
        assert Completeness(at.store, at.settings).is_complete(run)
        return folder

    def told(self, plan: Plan) -> dict[str, Any]:
        """What report, learning curves, search and MLflow say of the plan's run."""
        at = self.project
        results = collect(plan, at.store)
        (run,) = results.runs
        assert run.doubts == ()
        report = json.loads(render(results, "json"))
        cells = cells_of(plan, at.store, [])
        names = [f"{of}/{name}" for of, metrics in results.sets.items() for name in metrics]
        curves = read_curves(results, ["a"], [*names, PRIMARY])
        return {
            "report": {
                one["metric"]: (one["arms"][0]["values"], one["metric_id"])
                for one in report["metrics"]
                if not one["metric"].startswith("train/")
            },
            "measured": {name: one for name, one in run.measured.items() if not name.startswith("train/")},
            "curves": {name: [curve.mean.tolist() for curve in found] for name, found in curves.items()},
            "search": self.searched(plan).get(run.folder.id),
            "run in MLflow": shown(run_entry(cells[0]).points),
            "lines in MLflow": [
                values_of_sets({point.key: point.value for point in line_points([line])})
                for line in run_entry(cells[0]).lines
            ],
            "arm in MLflow": shown(arm_entry(plan, plan.arms[0], cells, [cells[0].record()]).points),
        }

    def searched(self, plan: Plan) -> dict[str, tuple[float, ...]]:
        """The runs that a search with the plan's evaluation would begin with, and their worth."""
        one = plan.arms[0].experiment
        table = {"question": "?", "experiment": one, "budget": {"trials": 1}, "finish": 1, "seeds": 1}
        space = {"train.optimiser.lr": {"kind": "float", "low": 1e-5, "high": 1e-1}}
        metrics = [{"metric": PRIMARY}, {"metric": "mine/mean_per_class_recall"}]
        table |= {"space": space, "objectives": metrics, "sampler": {"kind": "random"}}
        known = Configurations(Search.model_validate(table), "made", self.project).known()
        return {run: found.final for found in known for run in found.runs}


def shown(points: Any) -> dict[str, float]:
    """Final metrics of evaluation sets."""
    return values_of_sets({point.key: point.value for point in points})


def values_of_sets(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith(("mine/", "captions/"))}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A store that every spec of this file shares, in a working folder of its own."""
    root, before = tmp_path_factory.mktemp("shared"), Path.cwd()
    made_sets(root)
    os.chdir(root)
    yield Place(root)
    os.chdir(before)


def alone(root: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a store that a spec has for itself says of it."""
    own = Place(root)
    plan = own.plan(evaluation)
    own.carry_out(plan)
    return own.told(plan)


def pairs() -> Iterator[tuple[str, ...]]:
    yield ()
    yield from ((name,) for name in CHANGES)
    yield from itertools.combinations(CHANGES, 2)


def changes(names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for name in names for key, value in CHANGES[name].items()}


def sweep(tmp_path: Path, shared: Place, every: list[tuple[str, ...]]) -> None:
    """Carry every spec out in the shared store first; then each gives what it gives in a store of its own."""
    plans = {names: shared.plan(changes(names)) for names in every}
    folders = {shared.carry_out(plan).path for plan in plans.values()}
    assert len(folders) == 1, "evaluation is no part of a run's id"
    found = {names: shared.told(plan) for names, plan in plans.items()}
    seen: dict[str, tuple[str, ...]] = {}
    for number, names in enumerate(every):
        expected = alone(tmp_path / str(number), changes(names))
        assert expected["measured"]
        assert expected["search"]
        # a curve says nothing of conditions that the training was not measured under
        for part in ("report", "measured", "search", "run in MLflow", "arm in MLflow"):
            assert found[names][part] == expected[part], (names, part)
        assert found[names]["curves"].items() <= expected["curves"].items(), names
        lines = zip(found[names]["lines in MLflow"], expected["lines in MLflow"], strict=True)
        assert all(ours.items() <= theirs.items() for ours, theirs in lines), names
        text = json.dumps({name: one.metric_id for name, one in expected["measured"].items()}, sort_keys=True)
        assert seen.setdefault(text, names) == names, f"{names} has the identities of {seen[text]}"
    assert found[every[0]]["curves"]
    for plan in plans.values():
        assert shared.carry_out(plan).path in folders  # nothing is measured again


FEW: list[tuple[str, ...]] = [(), ("templates",), ("recall_k",), ("sets",), ("similarity",)]


def test_specs_that_share_runs_get_their_own_numbers(tmp_path: Path, shared: Place) -> None:
    sweep(tmp_path, shared, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_field_alone_and_in_pairs(tmp_path: Path, shared: Place) -> None:
    sweep(tmp_path, shared, list(pairs()))


def test_contents_changed_in_place_are_another_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    at, path = Place(tmp_path), tmp_path / "e1" / "mine"
    plan = at.plan({"sets": ["./e1/mine"]})
    (run,) = plan.runs.values()
    folder = at.carry_out(plan)
    before = at.told(plan)
    outcomes = {file.name: file.read_bytes() for file in folder.outcomes.iterdir()}
    shutil.move(path, tmp_path / "kept")
    shutil.copytree(tmp_path / "e2" / "mine", path)
    assert Completeness(at.project.store, at.project.settings).missing(run).sets == ("./e1/mine",)
    (nothing,) = collect(plan, at.project.store).runs
    assert not [name for name in nothing.measured if name.startswith("mine/")]
    at.carry_out(plan)
    after = at.told(plan)
    assert after["measured"] != before["measured"]
    assert {name: one.protocol_id for name, one in after["measured"].items()} != before["measured"]
    kept = {file.name: file.read_bytes() for file in folder.outcomes.iterdir()}
    assert kept.items() > outcomes.items()
    shutil.rmtree(path)
    shutil.move(tmp_path / "kept", path)
    assert at.told(plan) == before  # both are in the record, side by side
    assert len(folder.record().evaluations) == 2


def test_a_set_that_is_not_here_is_said_and_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    at, other = Place(tmp_path), {"sets": ["./e2/mine"]}
    plan, second = at.plan({"sets": ["./e1/mine"]}), at.plan(other)
    at.carry_out(plan)
    measured = at.told(plan)["measured"]
    shutil.move(tmp_path / "e1", tmp_path / "elsewhere")
    (run,) = collect(plan, at.project.store).runs
    assert run.doubts == ("mine is not on this machine: its contents are assumed to be those that were measured",)
    assert {name: one for name, one in run.measured.items() if name in measured} == measured
    assert "mine is not on this machine" in render(collect(plan, at.project.store), "md")
    shutil.move(tmp_path / "e2", tmp_path / "elsewhere2")
    (run,) = collect(second, at.project.store).runs  # was never measured
    assert not run.measured.keys() & measured.keys()
    shutil.copytree(tmp_path / "elsewhere2", tmp_path / "e1")
    at.carry_out(plan)  # other contents at the same path
    shutil.rmtree(tmp_path / "e1")
    (run,) = collect(plan, at.project.store).runs
    assert run.doubts == ("mine is not on this machine, and the record has measurements of several versions of it",)
    assert not run.measured.keys() & measured.keys()


LATEST = """
    SELECT tags.value, metrics.key, metrics.value, metrics.is_nan FROM latest_metrics metrics
    JOIN runs USING (run_uuid) JOIN tags USING (run_uuid)
    WHERE tags.key = 'harness.key' AND runs.lifecycle_stage = 'active'
"""


@pytest.mark.slow
def test_mlflow_holds_what_the_spec_asks_for_now(shared: Place) -> None:
    from harness.tracking import sync

    store, uri = shared.project.store, f"sqlite:///{shared.root / 'mlflow.db'}"
    plans = [shared.plan(changes(names), "one") for names in ((), ("templates",), ("recall_k",))]
    for plan in (*plans, plans[0]):
        shared.carry_out(plan)
        told = shared.told(plan)
        assert sync(plan, store, uri).imported == 1
        assert sync(plan, store, uri).imported == 0
        latest = rows(shared.root / "mlflow.db", LATEST)
        for key in (*plan.runs, "arm:"):
            held = {name: value for of, name, value, nan in latest if of.startswith(key) and not nan}
            held = {name: value for name, value in values_of_sets(held).items() if not name.endswith("_sd")}
            lines = {name: value for line in told["lines in MLflow"] for name, value in line.items()}
            expected = told["arm in MLflow"] if key == "arm:" else {**lines, **told["run in MLflow"]}
            assert held == expected
