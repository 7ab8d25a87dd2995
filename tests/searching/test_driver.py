"""The driver over made-up runs: nothing lost, nothing doubled, no trial left running, whatever dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import StoreError
from harness.config.strategy import LadderPolicy
from harness.planning.workspace import Project
from harness.searching.driver import Driver
from harness.searching.page import as_html
from harness.searching.report import render
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


def test_a_line_damaged_in_the_middle_is_one_sentence(at: Project) -> None:
    one = driver(search(), at)
    carried_out(one, 3)
    lines = one.folder.log.read_text().splitlines()
    one.folder.log.write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
    with pytest.raises(StoreError, match="line 2 is damaged"):
        driver(search(), at)


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


def test_finished_runs_of_the_store_are_a_warm_start(at: Project) -> None:
    carried_out(driver(search(), at))
    two = Driver(search(budget={"trials": 2}), "second", at, here_with(at))
    assert sum(trial.source == "warm start" for trial in two.study.trials.values()) == 12
    narrow = search(space={LR: {"kind": "float", "low": 1e-4, "high": 1e-3}, SHARE: search().space[SHARE]})
    three = Driver(narrow, "third", at, here_with(at))
    warm = [trial for trial in three.study.trials.values() if trial.source == "warm start"]
    assert all(trial.values[LR] <= 1e-3 for trial in warm)
    assert len(warm) < 12


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
