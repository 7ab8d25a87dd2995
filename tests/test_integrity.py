"""Damages of a store: each is told, or the numbers are those of the undamaged store.

Two runs of a few steps are trained once; each test damages a copy of their store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import api, worker
from harness.base.errors import StoreError
from harness.cli.verify import verify
from harness.config.ablation import Ablation
from harness.execute.run import run as carry_out
from harness.execute.status import statuses
from harness.execute.verify import Verification, verify_run
from harness.execute.verify_report import verify_report
from harness.node.stop import Stop
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.reporting import render
from harness.reporting.collect.curves import read_curves
from harness.reporting.collect.results import Results, collect
from harness.runs import integrity
from harness.runs.folder import RunFolder
from harness.runs.identity import Identity
from harness.runs.metrics import is_share
from harness.runs.record import Record
from harness.tracking.projection import cells_of, run_entry
from tests.head.made import is_one_sentence
from tests.node.small import experiment, prepared, project
from tests.node.test_damage import flipped

ARMS = {"a": {}, "b": {"train.optimiser.lr": 1e-3}}
TRAIN = {"duration": "4 steps", "global_batch_size": 16, "optimiser": {"lr": 1e-2}}


@dataclass(frozen=True)
class Place:
    """A project with the two finished runs."""

    root: Path

    @property
    def at(self) -> Project:
        return project(self.root)

    def plan(self, **changes: Any) -> Plan:
        one = experiment(teacher=None, train=TRAIN, **changes)
        table = {"question": "?", "baseline": "a", "arms": ARMS, "seeds": 1, "primary": "shapes/acc1"}
        return self.at.plan(Ablation.model_validate({**table, "experiment": one}), name="two")

    def folder(self, arm: str) -> RunFolder:
        return self.at.store.run(self.plan().cells[arm, 0])

    def results(self) -> Results:
        return collect(self.plan(), self.at.store)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("trained"))
    for run in place.plan().runs.values():
        assert worker.main(prepared(place.root, run).path, Stop()) == worker.DONE
    return place


@pytest.fixture
def place(trained: Place, tmp_path: Path) -> Place:
    shutil.copytree(trained.root, tmp_path / "copy")
    return Place(tmp_path / "copy")


def numbers(results: Results) -> dict[str, Any]:
    return {run.arm: run.measured for run in results.runs}


def curves(results: Results) -> dict[str, Any]:
    read = read_curves(results, ARMS, ["loss", "shapes/acc1"])
    return {name: {one.arm: one.mean.tolist() for one in found} for name, found in read.items()}


def edited(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))


def record(change: Callable[[dict[str, Any]], None]) -> Callable[[Place], None]:
    return lambda place: edited(place.folder("a").record_file, change)


def metric(table: dict[str, Any], value: float) -> None:
    table["evaluations"][0]["metrics"]["acc1"]["value"] = value


def twice(table: dict[str, Any]) -> None:
    table["evaluations"].append(json.loads(json.dumps(table["evaluations"][0])))
    metric(table, 0.123)


def copied(name: str, *, run_id: bool = False) -> Callable[[Place], None]:
    """The file of run b over that of run a; `run_id`: with a's id in it."""

    def damage(place: Place) -> None:
        ours, theirs = place.folder("a"), place.folder("b")
        shutil.copyfile(theirs.path / name, ours.path / name)
        if run_id:
            edited(ours.path / name, lambda table: table.update(run_id=ours.id))

    return damage


RECORDS: dict[str, Callable[[Place], object]] = {
    "another run's record": copied("record.json"),
    "accuracy 5.0": record(lambda table: metric(table, 5.0)),
    "accuracy -0.1": record(lambda table: metric(table, -0.1)),
    "accuracy NaN": record(lambda table: metric(table, float("nan"))),
    "a set twice": record(twice),
    "other steps": record(lambda table: table.update(steps=2)),
    "other samples_seen": record(lambda table: table.update(samples_seen=32)),
    "other epochs": record(lambda table: table.update(epochs=1.0)),
    "an attempt that never was": record(lambda table: table.update(attempts=7)),
    "other data": record(lambda table: table["data"].update(fingerprint="0" * 12)),
    "no samples": record(lambda table: table["evaluations"][0]["metrics"]["acc1"].update(samples=0)),
    "half a record": lambda place: place.folder("a").record_file.write_text(
        place.folder("a").record_file.read_text()[:900]
    ),
    "another run's spec": copied("spec.json"),
    "another field in the spec": lambda place: edited(
        place.folder("a").spec, lambda table: table["identity"]["train"]["optimiser"].update(lr=0.5)
    ),
    "no spec": lambda place: place.folder("a").spec.unlink(),
}
"""Seen without a seal, in records of earlier versions too."""
SEALED: dict[str, Callable[[Place], object]] = {
    "another run's record under this id": copied("record.json", run_id=True),
    "an edited digit": record(lambda table: metric(table, 0.25)),
    "a final value": record(lambda table: table["final"].update(loss=0.5)),
    "a dropped evaluation": record(lambda table: table["evaluations"].pop()),
    "an edited version": record(lambda table: table["versions"].update(torch="1.0")),
    "an edited digest": record(lambda table: table["seal"]["files"].update({"weights.pt": "0" * 64})),
    "an edited default": lambda place: edited(
        place.folder("a").spec, lambda table: table["resolved"]["train"]["optimiser"].update(beta2=0.9)
    ),
}


def unsealed(place: Place) -> None:
    for arm in ARMS:
        edited(place.folder(arm).record_file, lambda table: table.pop("seal"))


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "of an earlier version"])
@pytest.mark.parametrize("name", [*RECORDS, *SEALED])
def test_a_damaged_run_is_told_by_every_reader_and_stops_no_other(
    trained: Place, place: Place, name: str, seal: bool
) -> None:
    if not seal and name in SEALED:
        pytest.skip("not seen without a seal")
    if not seal:
        unsealed(place)
    {**RECORDS, **SEALED}[name](place)
    results, folder = place.results(), place.folder("a")
    ours, theirs = results.runs
    assert (ours.is_damaged, theirs.is_damaged) == (True, False)
    assert numbers(results)["b"] == numbers(trained.results())["b"]
    assert str(folder.path) in ours.message
    assert "1 failed: damaged" in render(results, "md")
    with pytest.raises(StoreError) as caught:
        folder.record(place.plan().runs[folder.id].identity)
    assert is_one_sentence(caught.value)
    assert caught.value.fix
    found = {one.arm: one for one in statuses(place.plan(), place.at.store)[0]}
    assert found["a"].is_damaged
    assert str(folder.path) in found["a"].failure
    assert found["b"].state == "done"
    skipped: list[str] = []
    cells = [cell for cell in cells_of(place.plan(), place.at.store, skipped) if cell.arm and cell.arm.name == "a"]
    with pytest.raises(StoreError):
        run_entry(cells[0])
    outcome = carry_out(place.plan(), place.at, "inline")
    assert not outcome
    assert {run: one.cause for run, one in outcome.failed.items()} == {folder.id: "damaged"}


LINES: dict[str, Callable[[RunFolder], object]] = {
    "cut": lambda folder: folder.metrics.write_bytes(folder.metrics.read_bytes()[:200]),
    "gone": lambda folder: folder.metrics.unlink(),
    "an edited digit": lambda folder: folder.metrics.write_text(folder.metrics.read_text().replace("1", "2", 1)),
    "a line more": lambda folder: folder.append_metrics(9, {"loss": 0.0}),
    "no text": lambda folder: folder.metrics.write_bytes(b"\xff\x00\n" * 9),
}


@pytest.mark.parametrize("name", LINES)
def test_a_curve_that_was_changed_is_left_out_and_the_results_stay(trained: Place, place: Place, name: str) -> None:
    LINES[name](place.folder("a"))
    results, whole = place.results(), trained.results()
    assert numbers(results) == numbers(whole)
    assert [arm for found in curves(results).values() for arm in found] == ["b"]
    assert curves(results)["loss"]["b"] == curves(whole)["loss"]["b"]
    assert "metrics.jsonl was changed since the run ended" in render(results, "md")


@pytest.mark.parametrize("how", ["flipped", "gone", "added"])
def test_outcomes_that_were_changed_are_told(place: Place, how: str) -> None:
    folder = place.folder("a")
    file = min(folder.outcomes.iterdir())
    match how:
        case "flipped":
            flipped(file)
        case "gone":
            file.unlink()
        case _:
            shutil.copyfile(file, file := file.with_name("shapes.other.parquet"))
    (run, _) = place.results().runs
    assert run.changed == {f"outcomes/{file.name}"}
    assert f"{file.name} was changed since the run ended" in render(place.results(), "md")


def test_no_reader_waits_for_a_pipe_in_place_of_a_file(place: Place, tmp_path: Path) -> None:
    """A test that hangs here is ended by pytest-timeout, and tells where."""
    plan, folder = place.plan(), place.folder("a")
    identity = plan.runs[folder.id].identity
    files = sorted(path for path in folder.path.rglob("*") if path.is_file())
    assert {folder.record_file, folder.metrics, folder.lock} < set(files)
    assert any(file.suffix == ".parquet" for file in files)
    for file in files:
        file.rename(tmp_path / "aside")
        os.mkfifo(file)
        render(collect(plan, place.at.store), "json")
        statuses(plan, place.at.store)
        verify_run(folder, Verification(), identity)
        file.unlink()
        (tmp_path / "aside").rename(file)


def test_weights_that_were_changed_are_not_measured(place: Place) -> None:
    flipped(place.folder("a").weights)
    assert not any(run.is_damaged for run in place.results().runs)
    outcome = carry_out(
        place.plan(evaluation={"sets": ["shapes", "shapes_retrieval"], "recall_k": [3]}), place.at, "inline"
    )
    (failure,) = outcome.failed.values()
    assert "weights.pt: is damaged: it was changed since its run ended" in failure.message
    assert outcome.done == 1


def test_new_evaluations_are_sealed_and_hide_no_earlier_change(place: Place) -> None:
    LINES["an edited digit"](place.folder("a"))
    before = {arm: place.folder(arm).record() for arm in ARMS}
    more = {"sets": ["shapes", "shapes_retrieval"], "recall_k": [3], "templates": ["a {c}"]}
    assert carry_out(place.plan(evaluation=more), place.at, "inline")
    for arm, old in before.items():
        folder, new = place.folder(arm), place.folder(arm).record()
        assert old.seal is not None
        assert new.seal is not None
        assert len(new.evaluations) > len(old.evaluations)
        assert old.seal.files.items() < new.seal.files.items()
        assert integrity.changed_files(new, folder.path) == (["metrics.jsonl"] if arm == "a" else [])
    assert not any(run.is_damaged for run in place.results().runs)


def test_a_record_without_a_seal_gets_one_with_its_next_evaluation(place: Place) -> None:
    unsealed(place)
    assert place.folder("a").record().seal is None
    assert carry_out(place.plan(evaluation={"sets": ["shapes"], "templates": ["a {c}"]}), place.at, "inline")
    assert place.folder("a").record().seal is not None


def test_a_changed_default_is_told_by_readers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = property(lambda self: self._complete(self.experiment.science(defaults=True)) | {"new_default": 1})
    edited(place.folder("a").spec, lambda table: table["resolved"].update(new_default=0))
    unsealed(place)
    monkeypatch.setattr(Identity, "resolved", changed)
    ours, theirs = place.results().runs
    assert ours.is_damaged
    assert "was made with other defaults: new_default 0 -> 1" in ours.message
    assert not theirs.is_damaged  # a field that its spec did not have


def test_a_seal_covers_all_that_a_run_leaves(trained: Place) -> None:
    folder = trained.folder("a")
    seal = folder.record().seal
    assert seal is not None
    outcomes = {f"outcomes/{file.name}" for file in folder.outcomes.iterdir()}
    assert seal.files.keys() == {"spec.json", "metrics.jsonl", "weights.pt", *outcomes}
    assert len(outcomes) == 2


def test_every_metric_of_an_evaluation_is_a_share(trained: Place) -> None:
    found: Record = trained.folder("a").record()
    assert all(is_share(name) for one in found.evaluations for name in one.metrics)


def checked(place: Place, retrain: int = 0) -> Verification:
    plan = place.plan()
    plan.settings = place.at.settings
    return api.verify(plan, retrain=retrain)


def test_verify_derives_every_number_again(trained: Place) -> None:
    found = checked(trained)
    assert (found.problems, found.unproven) == ([], [])
    recorded = [one for arm in ARMS for one in trained.folder(arm).record().evaluations]
    assert found.runs == 2
    assert found.metrics == sum(len(one.metrics) for one in recorded) > 10
    assert found.report > 50
    assert found.files == 2 * 5


def on_folder(damage: Callable[[RunFolder], object], place: Place) -> object:
    return damage(place.folder("a"))


DERIVED: dict[str, Callable[[Place], object]] = {
    **RECORDS,
    **SEALED,
    **{f"metrics.jsonl: {name}": partial(on_folder, damage) for name, damage in LINES.items()},
    "weights": lambda place: flipped(place.folder("a").weights),
    "outcomes": lambda place: flipped(min(place.folder("a").outcomes.iterdir())),
    "no outcomes": lambda place: shutil.rmtree(place.folder("a").outcomes),
}


@pytest.mark.parametrize("name", DERIVED)
def test_verify_finds_each_damage(place: Place, name: str) -> None:
    DERIVED[name](place)
    found = checked(place)
    assert not found
    assert place.folder("a").id in "".join(found.problems)
    assert f"/{place.folder('b').id}/" not in "".join(found.problems)


@pytest.mark.parametrize("name", ["acc1", "acc5", "mean_per_class_recall"])
def test_verify_finds_a_number_that_its_outcomes_do_not_give(place: Place, name: str) -> None:
    """A record whose seal was made anew by whoever changed it."""
    folder = place.folder("a")
    table = json.loads(folder.record_file.read_text())
    metric_of = next(one["metrics"] for one in table["evaluations"] if name in one["metrics"])
    metric_of[name]["value"] = (metric_of[name]["value"] + 0.25) % 1
    table["seal"]["record"] = integrity.record_digest(table)
    folder.record_file.write_text(json.dumps(table))
    found = checked(place)
    assert not place.results().runs[0].is_damaged
    assert f"run {folder.id}: the record says shapes/{name} is " in found.problems[0]


def test_verify_finds_a_report_that_its_runs_do_not_give(trained: Place) -> None:
    found = Verification()
    for run in trained.plan().runs.values():
        verify_run(trained.at.store.run(run.id), found, run.identity)
    report = json.loads(render(trained.results(), "json"))
    verify_report(json.dumps(report), found)
    assert found
    report["metrics"][0]["arms"][1]["difference"]["mean"] += 1e-6
    verify_report(json.dumps(report), found)
    (problem,) = found.problems
    assert problem.startswith("the report's shapes/acc1 of b says ")


def test_one_run_that_cannot_be_read_leaves_the_other_arms_numbers_to_verify(trained: Place) -> None:
    report = render(trained.results(), "json")
    whole, found = Verification(), Verification()
    for one in (whole, found):
        verify_run(trained.folder("a"), one)
    verify_run(trained.folder("b"), whole)
    verify_report(report, whole)
    table = json.loads(report)
    for column in table["metrics"]:
        (arm,) = [arm for arm in column["arms"] if arm["arm"] == "a"]
        arm["summary"]["mean"] += 0.5
    verify_report(json.dumps(table), found)
    assert len(found.problems) == len(table["metrics"])
    assert sum("of b is not derived again" in one for one in found.unproven) == len(table["metrics"])
    assert 0 < found.report < whole.report


def test_verify_says_what_it_cannot_prove_of_an_earlier_store(place: Place) -> None:
    unsealed(place)
    shutil.rmtree(place.folder("b").outcomes)
    found = checked(place)
    assert found
    said = "\n".join(found.unproven)
    assert f"run {place.folder('a').id} has no seal" in said
    assert f"run {place.folder('b').id}: shapes: acc1, acc5, mean_per_class_recall: it kept no outcomes" in said


@pytest.mark.slow
def test_a_run_that_is_trained_again_has_the_same_bits(place: Place) -> None:
    found = checked(place, retrain=1)
    assert (found.retrained, found.problems) == (1, [])
    folder = place.folder("a")
    edited(folder.record_file, lambda table: table["final"].update(loss=0.5))
    table = json.loads(folder.record_file.read_text())
    table["seal"]["record"] = integrity.record_digest(table)
    folder.record_file.write_text(json.dumps(table))
    found = checked(place, retrain=1)
    assert found.retrained == 0
    assert "trained again, differs (final training metrics)" in found.problems[0]


def test_the_command(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STORE", str(place.at.store.root))
    monkeypatch.setenv("HARNESS_TRACKING_URI", "none")
    folder = place.folder("a")
    assert verify(folder.id[:8], (), 0)
    assert "1 finished runs; 5 files are as they were sealed" in capsys.readouterr().out
    flipped(folder.weights)
    assert not verify(folder.id, (), 0)
    assert f"WRONG: {folder.weights} was changed since the run ended" in capsys.readouterr().out
