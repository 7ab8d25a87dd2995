"""The driver over made-up runs: nothing lost, nothing doubled, no trial left running, whatever dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import SpecError, StoreError
from harness.config.strategy import LadderPolicy
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.integrity import file_digest, record_digest
from harness.searching.driver import Driver
from harness.searching.page import as_html
from harness.searching.report import doubts, render
from harness.searching.session import SearchRequest
from tests.damages import DAMAGES
from tests.data.made import sample, write_tar
from tests.searching.made import (
    LR,
    SHARE,
    STEPS,
    STRATEGIES,
    MadeWorkers,
    carried_out,
    driver,
    here_with,
    search,
    study_equals_records,
    tried,
)

STOPPING = ("median", "percentile", "asha", "hyperband", "patience", "fastbo", "ladder")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_ends_within_its_budget_and_selects_at_full_length(name: str, at: Project) -> None:
    one = driver(search(**STRATEGIES[name]), at)
    carried_out(one)
    assert one.is_over
    assert len(tried(one)) == 12
    ids = [run_id for trial in tried(one) for run_id in one.run_ids(trial.number)]
    assert len(set(ids)) == 12
    winner = one.study.best()
    assert winner is not None
    assert winner.final is not None
    stopped = [trial for trial in tried(one) if trial.status == "stopped"]
    assert bool(stopped) == (name in STOPPING)
    assert one.spent_steps() == sum(int(at.store.run(run_id).read_progress()["step"]) for run_id in ids)
    if stopped:
        assert one.spent_steps() < 12 * STEPS
    study_equals_records(one)
    assert winner.values[LR] > 0
    assert "Best at full length: shapes/acc1" in render(one)
    if name == "ladder":
        page = as_html(one)
        assert page.count("<figure>") == page.count("</svg>") >= 6
        assert "<script" not in page


@pytest.mark.parametrize("name", ["tpe", "gp", "asha", "fastbo", "ladder", "nsga2", "cma_es"])
def test_killed_at_any_look_it_goes_on_to_as_many_trials(name: str, at: Project) -> None:
    one = driver(search(**STRATEGIES[name]), at)
    for looks in (1, 3, 5, 2):
        carried_out(one, looks)
        one = driver(search(**STRATEGIES[name]), at)
    carried_out(one)
    assert one.is_over
    assert len(tried(one)) == 12
    assert [trial.number for trial in one.study.trials.values()] == list(range(len(one.study.trials)))
    study_equals_records(one)
    if name == "ladder":  # nobody is trained further than its rung
        for trial in tried(one):
            (run_id,) = one.run_ids(trial.number)
            assert at.store.run(run_id).read_progress()["step"] == trial.reached
    again = driver(search(**STRATEGIES[name]), at)
    assert {n: t.values for n, t in again.study.trials.items()} == {n: t.values for n, t in one.study.trials.items()}
    workers = MadeWorkers()
    over = driver(search(**STRATEGIES[name]), at, workers)
    carried_out(over)
    assert not workers.started


def test_a_process_that_dies_is_started_again_and_is_no_failure(at: Project) -> None:
    workers = MadeWorkers(deaths={2, 5, 9})
    one = driver(search(), at, workers)
    carried_out(one)
    assert [trial.status for trial in tried(one)] == ["complete"] * 12
    assert len(workers.started) == 15


@pytest.mark.parametrize("name", STOPPING)
def test_a_worker_in_place_of_one_that_died_minds_the_pause_too(name: str, at: Project) -> None:
    one = driver(search(**STRATEGIES[name]), at, MadeWorkers(deaths=set(range(2, 200, 3))))
    carried_out(one)
    assert one.is_over
    for trial in tried(one):
        (run_id,) = one.run_ids(trial.number)
        assert at.store.run(run_id).read_progress()["step"] <= trial.reached + 1


def test_the_same_seed_chooses_the_same_configurations(at: Project, world: Path, tmp_path: Path) -> None:
    one = driver(search(**STRATEGIES["gp"]), at, MadeWorkers(jobs=1))
    carried_out(one)
    other = Project(at.settings.model_copy(update={"store": tmp_path / "other"}), type(at.store)(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data").symlink_to(world / "store" / "data")
    two = driver(search(**STRATEGIES["gp"]), other, MadeWorkers(jobs=1))
    carried_out(two)
    assert [trial.values for trial in tried(one)] == [trial.values for trial in tried(two)]


def test_a_torn_event_and_a_damaged_journal_are_mended_and_said(at: Project) -> None:
    one = driver(search(), at)
    carried_out(one, 6)
    with one.folder.log.open("ab") as stream:
        stream.write(b'{"event": "ask')
    with one.folder.journal.open("ab") as stream:
        stream.write(b'{"op_code": 5, "wor')
    again = driver(search(), at)
    assert len(again.folder.repaired) == 2
    assert "torn" in again.folder.repaired[0]
    assert "rebuilt" in again.folder.repaired[1]
    carried_out(again)
    assert len(tried(again)) == 12
    study_equals_records(again)


def edited(lines: list[str], event: str, **fields: Any) -> list[str]:
    """The lines, with other fields in the first one of this kind."""
    place = next(place for place, line in enumerate(lines) if json.loads(line)["event"] == event)
    return [*lines[:place], json.dumps(json.loads(lines[place]) | fields), *lines[place + 1 :]]


EVENTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "garbled": (lambda lines: [lines[0], "{", *lines[1:]], "line 2 is damaged"),
    "deep": (lambda lines: [lines[0], "[" * 100_000, *lines[1:]], "line 2 is damaged"),
    "each twice": (lambda lines: [line for line in lines for _ in range(2)], "repeats configuration 0"),
    "of another program": (lambda lines: [*lines, '{"op_code": 5}'], "is of no known kind"),
    "of the future": (lambda lines: [*lines, '{"event": "moved", "number": 0}'], "is of no known kind"),
    "a lost beginning": (lambda lines: [lines[0], *lines[2:]], "is of configuration 0, whose beginning is missing"),
    "a lost report": (lambda lines: [line for line in lines if '"level": 2' not in line], ""),
    "outside the space": (lambda lines: edited(lines, "asked", values={LR: 7.0, SHARE: 0.8}), "is outside the search"),
    "another space": (lambda lines: edited(lines, "asked", values={LR: 0.01}), "has other fields than the search"),
    "another value": (lambda lines: edited(lines, "asked", values={LR: 0.01, SHARE: 0.8}), "not those of its runs"),
    "no values": (lambda lines: edited(lines, "asked", values=None), "lacks a field"),
    "no result": (lambda lines: edited(lines, "complete", final=[]), "has 0 results for 1 objectives"),
    "text": (lambda lines: edited(lines, "complete", final=["best"]), "lacks a field, or has one of another type"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_lines_that_do_not_fit_are_left_out_and_the_search_goes_on(at: Project, name: str) -> None:
    one = driver(search(**STRATEGIES["median"]), at)
    carried_out(one, 12)
    damage, said = EVENTS[name]
    before = "".join(f"{line}\n" for line in damage(one.folder.log.read_text().splitlines()))
    one.folder.log.write_text(before)
    looked = Driver(search(**STRATEGIES["median"]), "made", at, here_with(at), only_look=True)
    assert one.folder.log.read_text() == before
    assert render(looked)
    again = driver(search(**STRATEGIES["median"]), at)
    sentences = again.folder.repaired
    assert any(said in one for one in sentences) if said else not sentences
    assert all(one.startswith(str(again.folder.log)) for one in sentences)
    if said:
        assert again.folder.log.with_suffix(".damaged").read_text() == before
    carried_out(again)
    assert again.is_over
    assert len(tried(again)) == 12
    study_equals_records(again)
    assert driver(search(**STRATEGIES["median"]), at).folder.repaired == []


def test_a_result_that_was_edited_is_told(at: Project) -> None:
    one = driver(search(), at)
    carried_out(one)
    assert doubts(one) == []
    lines = one.folder.log.read_text().splitlines()
    one.folder.log.write_text("".join(f"{line}\n" for line in edited(lines, "complete", final=[0.99])))
    found = driver(search(), at)
    (sentence,) = doubts(found)
    assert "trials.jsonl says 0.9900, the records 0." in sentence
    assert sentence in render(found)


def test_a_damaged_record_is_told_by_the_report_and_is_no_warm_start(at: Project) -> None:
    one = driver(search(), at)
    carried_out(one)
    (run_id,) = one.run_ids(0)
    at.store.run(run_id).record_file.write_text("{")
    (sentence,) = doubts(driver(search(), at))
    assert sentence.startswith("configuration 0: ")
    assert sentence in render(driver(search(), at))
    fresh = Driver(search(), "another", at, here_with(at))
    (left_out,) = fresh.configurations.left_out
    assert str(at.store.run(run_id).record_file) in left_out
    assert sum(trial.source == "warm start" for trial in tried(fresh)) == 11


@pytest.mark.parametrize("budget", [{"steps": 1}, {"steps": STEPS - 1}])
def test_a_budget_that_allows_nothing_is_refused(at: Project, budget: dict[str, int]) -> None:
    request = SearchRequest(search(budget=budget), "made", at, "inline", where="search.toml")
    with pytest.raises(SpecError, match=r"search.toml: budget: is smaller than one configuration of 8 steps.*raise it"):
        request.carry_out()
    assert not driver(search(budget={"steps": STEPS}), at).allows_nothing


def test_another_search_under_the_same_name_is_refused_with_the_difference(at: Project) -> None:
    with driver(search(), at).folder.held(search()):
        pass
    other = search(sampler={"kind": "tpe"})
    with pytest.raises(StoreError, match=r"sampler.kind was 'random' and is 'tpe'"):
        driver(other, at)
    driver(search(budget={"trials": 20}), at)


def test_a_second_driver_is_refused(at: Project) -> None:
    one = driver(search(), at)
    with one.folder.held(search()), pytest.raises(StoreError, match="drives this search"):  # noqa: SIM117
        with driver(search(), at).folder.held(search()):
            pass


def _request(folder: RunFolder) -> None:
    folder.request.write_text("{")


def _default(folder: RunFolder) -> None:
    """What the code had as the default of another field when the run was made."""
    spec = json.loads(folder.spec.read_text())
    spec["resolved"]["train"]["optimiser"]["eps"] = 0.5
    folder.spec.write_text(json.dumps(spec))
    record = json.loads(folder.record_file.read_text())
    if record.get("seal"):
        record["seal"]["files"]["spec.json"] = file_digest(folder.spec)
        record["seal"]["record"] = record_digest(record)
        folder.record_file.write_text(json.dumps(record))


@pytest.mark.parametrize(("damage", "told"), [(_request, "request.json"), (_default, "was made with other defaults")])
def test_what_is_no_warm_start_is_said(at: Project, damage: Callable[[RunFolder], None], told: str) -> None:
    one = driver(search(), at)
    carried_out(one)
    (run_id,) = one.run_ids(0)
    damage(at.store.run(run_id))
    fresh = Driver(search(), "another", at, here_with(at))
    (left_out,) = fresh.configurations.left_out
    assert left_out.startswith("not used as a warm start: ")
    assert told in left_out
    assert sum(trial.source == "warm start" for trial in tried(fresh)) == 11


@pytest.mark.parametrize("how", [name for name in DAMAGES if name not in ("gone", "flipped")])
def test_a_journal_that_is_damaged_in_any_way_is_made_again(at: Project, how: str) -> None:
    one = driver(search(budget={"trials": 2}), at)
    carried_out(one)
    DAMAGES[how](one.folder.journal)
    again = driver(search(budget={"trials": 2}), at)
    study_equals_records(again)
    assert how == "empty" or any("Optuna's journal was damaged" in one for one in again.folder.repaired)


def test_finished_runs_of_the_store_are_a_warm_start(at: Project) -> None:
    carried_out(driver(search(), at))
    two = Driver(search(budget={"trials": 2}), "second", at, here_with(at))
    assert sum(trial.source == "warm start" for trial in two.study.trials.values()) == 12
    narrow = search(space={LR: {"kind": "float", "low": 1e-4, "high": 1e-3}, SHARE: search().space[SHARE]})
    three = Driver(narrow, "third", at, here_with(at))
    warm = [trial for trial in three.study.trials.values() if trial.source == "warm start"]
    assert all(trial.values[LR] <= 1e-3 for trial in warm)
    assert len(warm) < 12


def test_a_search_of_which_every_trial_fails_ends(at: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that failed has used its part of the budget."""
    mining = {"kind": "threshold", "image_text": {"quantile": 0.9}}
    base = {"mining": mining, "loss": {"kind": "multi_positive_sigmoid"}}
    one = driver(search(budget={"trials": 3}, base=base), at)
    monkeypatch.setattr(one, "_failure", lambda run: "it failed")
    carried_out(one, 200)
    assert one.is_over
    assert [trial.status for trial in one.study.trials.values()] == ["failed"] * 3
    assert {trial.why for trial in one.study.trials.values()} == {"it failed"}


@pytest.mark.parametrize("guard", ["off", 0.1, {"quantile": 0.05}, None])
def test_finished_runs_of_another_shape_are_no_warm_start(at: Project, guard: Any) -> None:
    """A field of the space may be a word, a number, out of range or absent in runs that others have made."""
    mining: dict[str, Any] = {"kind": "threshold", "image_text": {"quantile": 0.9}, "image_text_guard": guard}
    loss = {"kind": "multi_positive_sigmoid"}
    others = search(budget={"trials": 1}, base={"mining": mining if guard else {"kind": "none"}, "loss": loss})
    carried_out(driver(others, at))
    path = "mining.image_text_guard.quantile"
    own = search(
        budget={"trials": 1},
        base={"mining": {"kind": "threshold", "image_text": {"quantile": 0.9}}, "loss": loss},
        space={path: {"kind": "float", "low": 0.1, "high": 0.8}},
    )
    assert list(Driver(own, "own", at, here_with(at)).configurations.known()) == []


def test_a_budget_in_steps_is_never_exceeded(at: Project) -> None:
    one = driver(search(budget={"steps": 60}, pruner={"kind": "asha"}), at)
    carried_out(one)
    assert one.spent_steps() <= 60
    assert len(tried(one)) > 60 // STEPS


def test_two_objectives_have_a_front(at: Project) -> None:
    objectives = [{"metric": "shapes/acc1"}, {"metric": "cost/duration_s", "goal": "minimise"}]
    one = driver(search(objectives=objectives, sampler={"kind": "nsga2", "population": 4}), at)
    carried_out(one)
    assert "on the front of 12" in render(one)


def test_constraints_keep_a_configuration_from_winning(at: Project) -> None:
    one = driver(search(constraints={"peak_memory_gb": 0.5}), at)
    carried_out(one)
    assert one.study.best() is None
    assert all(trial.violation == pytest.approx(1.0) for trial in tried(one))


def test_wilcoxon_leaves_out_seeds_of_what_loses(at: Project) -> None:
    wilcoxon = {"kind": "wilcoxon", "p": 0.2, "startup": 2}
    one = driver(search(seeds=6, pruner=wilcoxon, budget={"trials": 5}), at)
    carried_out(one)
    done = [sum(at.store.run(run_id).record_file.exists() for run_id in one.run_ids(t.number)) for t in tried(one)]
    assert done[0] == 6
    assert min(done) < 6
    assert {trial.status for trial in tried(one)} == {"complete", "stopped"}


def test_ladder_climbs_from_checkpoints(at: Project) -> None:
    one = driver(search(**STRATEGIES["ladder"]), at)
    carried_out(one)
    assert isinstance(one.search.pruner, LadderPolicy)
    probes = one.search.pruner.probes
    assert all(trial.reached == STEPS for trial in tried(one)[:probes])
    reached = sorted(trial.reached for trial in tried(one)[probes:])
    assert reached[0] == 1


def test_what_is_left_out_of_the_data_is_said_recorded_and_reported(
    at: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [(f"{n}", sample(n, caption=f"other {n}")) for n in range(40)]
    write_tar(tmp_path / "a.tar", [*samples, ("x", {"txt": b"no image"})])
    data = {"kind": "webdataset", "shards": str(tmp_path / "a.tar")}
    base = search().experiment.model_dump() | {"data": data, "evaluation": {"sets": []}}
    fields = {"experiment": base, "objectives": [{"metric": "train/loss", "goal": "minimise"}]}
    space = {LR: {"kind": "choice", "of": [0.1, 0.2]}}
    two = search(**fields, space=space | {"data.raw": {"kind": "choice", "of": ["txt", "json:caption"]}})
    said: list[str] = []
    monkeypatch.setattr(Driver, "carry_out", lambda self: iter(()))
    request = SearchRequest(two, "made", at, "inline", where="search.toml")
    assert not request.carry_out(on_note=said.append)
    (line,) = said
    assert line.endswith(": 40 of 41 samples are trained on; left out: 1 no image")
    monkeypatch.undo()
    one = driver(two, at)
    assert one.census() == [line]
    for raw in ("txt", "json:caption"):
        one.configurations.runs({LR: 0.1, "data.raw": raw})
    assert (one.note_data(), one.note_data()) == (True, False)
    again = driver(two, at).census()  # a configuration's data is in the search's record
    assert [sentence.partition(": ")[2] for sentence in again] == [
        "40 of 41 samples are trained on; left out: 1 no image",
        "40 of 41 samples are trained on; left out: 1 no image",
    ]
    assert all(sentence in text for text in (render(one), as_html(one)) for sentence in again)
    one.folder.data.write_text("{")
    with pytest.raises(StoreError, match=r"data.json: cannot be read; delete it"):
        one.census()
