"""The driver over a made cluster: a job for each run, adopted by the next command, whatever dies in between."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.execute.slurm import executor as sweep
from harness.execute.slurm.submission_log import load
from harness.planning.workspace import Project
from harness.runs.folder import State
from harness.searching.driver import Driver
from tests.execute.made import causes
from tests.searching.made import (
    STEPS,
    STRATEGIES,
    MadeCluster,
    MadeWorkers,
    carried_out,
    driver,
    here_with,
    on,
    search,
    study_equals_records,
    tried,
)

NAMES = ("random", "tpe", "asha", "fastbo", "ladder")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "snapshot", lambda root: root / "copy")
    for name in ("FASTEST_S", "SLOWEST_S", "FEW_EVERY_S"):
        monkeypatch.setattr(sweep, name, 0.0)


def legs(one: Driver) -> dict[str, int]:
    """By run: how often its training was begun, or gone on with after a pause, by what the search decided."""
    resumed = Counter(event["number"] for event in one.folder.events().values() if event["event"] == "resumed")
    return {run: 1 + resumed[trial.number] for trial in tried(one) for run in one.run_ids(trial.number)}


def runs_have_a_job_for_each_leg(one: Driver, cluster: MadeCluster) -> None:
    assert {run: len(cluster.jobs_of(run)) for run in legs(one)} == legs(one)


@pytest.mark.parametrize("name", NAMES)
def test_each_run_has_one_job_until_it_pauses_or_ends(name: str, at: Project) -> None:
    cluster = MadeCluster()
    one = on(cluster, search(**STRATEGIES[name]), at)
    waiting = [snapshot.runs.waiting + len(snapshot.runs.running) for snapshot in carried_out(one)]
    assert max(waiting) == 3, "as many at a time as the profile says"
    assert one.is_over
    assert len(tried(one)) == 12
    study_equals_records(one)
    runs_have_a_job_for_each_leg(one, cluster)
    for trial in tried(one):
        (run,) = one.run_ids(trial.number)
        folder = at.store.run(run)
        assert int(folder.read_progress()["step"]) <= trial.reached + 1, "nobody trains beyond where it was to pause"
        assert set(causes(folder)) == {"completed"}
        assert folder.state() in (State.DONE, State.INTERRUPTED)


def test_alone_it_chooses_what_a_search_on_this_machine_chooses(at: Project) -> None:
    table = search(**STRATEGIES["ladder"], budget={"trials": 6})
    one = on(MadeCluster(), table, at, jobs=1)
    carried_out(one)
    there = {n: (t.values, t.curve, t.final, t.status) for n, t in one.study.trials.items()}
    again = Driver(table, "here", at, lambda plan: pytest.fail("everything is in the records"))
    assert sum(trial.source == "warm start" for trial in again.study.trials.values()) == sum(
        trial.final is not None for trial in tried(one)
    )
    (at.store.root / "runs").rename(at.store.root / "elsewhere")
    (at.store.root / "searches").rename(at.store.root / "searched")
    two = driver(table, at, MadeWorkers(jobs=1))
    carried_out(two)
    assert {n: (t.values, t.curve, t.final, t.status) for n, t in two.study.trials.items()} == there


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_driver_adopts_the_jobs_that_live(name: str, at: Project) -> None:
    cluster = MadeCluster()
    one = on(cluster, search(**STRATEGIES[name]), at)
    for looks in (1, 4, 7, 2, 9, 3):
        carried_out(one, looks)
        one = on(cluster, search(**STRATEGIES[name]), at)
    carried_out(one)
    assert one.is_over
    assert len(tried(one)) == 12
    study_equals_records(one)
    runs_have_a_job_for_each_leg(one, cluster)
    again = on(cluster, search(**STRATEGIES[name]), at)
    before = len(cluster.jobs)
    carried_out(again)
    assert len(cluster.jobs) == before


def test_jobs_go_on_to_their_pause_while_no_driver_is_there(at: Project) -> None:
    cluster = MadeCluster()
    table = search(**STRATEGIES["ladder"])
    carried_out(on(cluster, table, at), 2)
    for _ in range(2 * STEPS):
        cluster.queue()
    assert {job.phase for job in cluster.jobs.values()} == {"ended"}
    one = on(cluster, table, at)
    carried_out(one)
    assert len(tried(one)) == 12
    runs_have_a_job_for_each_leg(one, cluster)


@pytest.mark.parametrize("name", ["random", "ladder"])
def test_a_job_that_dies_is_submitted_again_and_its_trial_has_not_failed(name: str, at: Project) -> None:
    cluster = MadeCluster(deaths={4, 9, 15, 22})
    one = on(cluster, search(**STRATEGIES[name]), at)
    carried_out(one)
    assert len(tried(one)) == 12
    assert "failed" not in {trial.status for trial in tried(one)}
    study_equals_records(one)
    died = sum(job.state == "NODE_FAIL" for job in cluster.jobs.values())
    assert died >= 3
    assert len(cluster.jobs) == sum(legs(one).values()) + died


def test_a_cancelled_job_is_no_failed_trial_and_goes_on_when_asked(at: Project) -> None:
    cluster = MadeCluster()
    one = on(cluster, search(), at)
    looks = one.carry_out()
    for _ in range(4):
        next(looks)
    victim = next(job for job in cluster.jobs.values() if job.phase == "running").id
    (run,) = cluster.runs_of(victim)
    cluster.cancel([victim])
    assert list(looks)
    assert not one.is_over
    (waiting,) = one.active.values()
    assert [each.id for each in waiting.runs] == [run]
    assert len([trial for trial in tried(one) if trial.status == "complete"]) == 11
    again = on(cluster, search(), at)
    carried_out(again)
    assert again.is_over
    assert [trial.status for trial in tried(again)] == ["complete"] * 12
    assert len(cluster.jobs_of(run)) == 2


def test_a_pause_is_on_disk_before_slurm_hears_of_the_run(at: Project) -> None:
    cluster = MadeCluster()
    found: list[int | None] = []
    cluster.answer = lambda batch: found.extend(
        at.store.run(run).pause_step() for task in load(batch.folder).intent.tasks for run in task
    )
    climbing = STRATEGIES["ladder"] | {"pruner": {"kind": "ladder", "first_rung": 1, "probes": 0}}
    carried_out(on(cluster, search(**climbing), at), 3)
    assert found
    assert set(found) == {1}


def test_a_finished_run_that_lacks_the_objective_is_measured(at: Project) -> None:
    """Another spec trained it, and measured it on other sets: a record alone does not make it complete."""
    wilcoxon = {"kind": "wilcoxon", "p": 0.2, "startup": 2}
    table = search(seeds=3, pruner=wilcoxon, budget={"trials": 2}, warm_start=False)
    one = on(MadeCluster(), table, at)
    carried_out(one)
    done = [folder for folder in at.store.runs() if folder.record_file.exists()]
    for folder in done:
        folder.finish(folder.record().model_copy(update={"evaluations": ()}))
    again = Driver(table, "again", at, here_with(at, workers := MadeWorkers()))
    carried_out(again)
    assert again.is_over
    assert {folder.id for folder in done} <= set(workers.started)
    assert all(folder.record().evaluations for folder in done)
