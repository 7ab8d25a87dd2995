"""A sweep over a made scheduler: everything once, whatever is answered, lost, cancelled or dies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import DispatchError, SpecError
from harness.base.exit_status import DISK_FULL, DISK_IS_FULL
from harness.config.profile import Profile, Retry
from harness.execute.life import MOST_STARTS
from harness.execute.slurm import executor as sweep
from harness.execute.slurm import job_tracker, jobs
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.jobs import Cancelled, cancel_jobs, refuse_what_jobs_have
from harness.execute.slurm.scheduler import ArrayRequest, Job, RefusedError
from harness.execute.slurm.submission_log import SubmissionLog
from harness.planning.plan import Plan
from harness.runs.record import Cause
from harness.runs.request import read_request
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.execute.made import MadeScheduler, attempted, causes, complete, train
from tests.head.made import MINING, ablation, plan_of

MINED = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}
PLAN = plan_of(ablation({"a": {}, "b": MINED}, seeds=2))
ALONE = plan_of(ablation({"a": {}}, seeds=3))
(TEACHER,) = [run.id for run in PLAN.runs.values() if run.role == "teacher"]
A = [PLAN.cells["a", 0], PLAN.cells["a", 1]]
B = [PLAN.cells["b", 0], PLAN.cells["b", 1]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(sweep, "snapshot", lambda root: root / "copy")
    return Store(tmp_path / "store")


@pytest.fixture
def slurm() -> MadeScheduler:
    return MadeScheduler()


def started(plan: Plan, store: Store, slurm: MadeScheduler, **profile: Any) -> SlurmExecutor:
    """A sweep as a fresh command makes it."""
    table = {"gpus_per_task": 1, "mem_gb": 8, "partitions": ["gpu"]} | profile
    return SlurmExecutor(plan, store, Settings(store=store.root), Profile.model_validate(table), slurm)


def die_before_sbatch(plan: Plan, store: Store, slurm: MadeScheduler) -> None:
    """A command that is killed when its intent is on disk and SLURM has heard nothing."""

    def die(_batch: ArrayRequest) -> None:
        raise KeyboardInterrupt

    slurm.answer = die
    with pytest.raises(KeyboardInterrupt):
        started(plan, store, slurm).cycle()
    slurm.answer = lambda _batch: None


def jobs_by_run(slurm: MadeScheduler) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for job in slurm.jobs:
        for run in slurm.runs_of(job):
            found.setdefault(run, []).append(job)
    return found


def test_teachers_first_and_students_wait_for_their_jobs(store: Store, slurm: MadeScheduler) -> None:
    one = started(PLAN, store, slurm)
    one.cycle()
    assert {run: len(jobs) for run, jobs in jobs_by_run(slurm).items()} == dict.fromkeys(PLAN.runs, 1)
    (teacher,) = jobs_by_run(slurm)[TEACHER]
    for run in B:
        (job,) = jobs_by_run(slurm)[run]
        assert slurm.batches[job.partition("_")[0]].after == (teacher,)
    for run in A:
        assert slurm.batches[jobs_by_run(slurm)[run][0].partition("_")[0]].after == ()
    assert not one.without_jobs()
    assert one.progress().waiting == 5
    submissions, before = slurm.calls.count("submit"), slurm.jobs.copy()
    for _ in range(3):
        one.cycle()
        started(PLAN, store, slurm).cycle()  # any command, from any shell
    assert (slurm.calls.count("submit"), slurm.jobs) == (submissions, before)


def test_everything_done_submits_nothing(store: Store, slurm: MadeScheduler) -> None:
    for run in PLAN.runs.values():
        store.run(run.id).prepare(run.identity, {})
        complete(PLAN, store, run.id)
    assert [at.done for at in started(PLAN, store, slurm).run()] == [5]
    assert slurm.calls == []


def test_only_the_difference_is_submitted(store: Store, slurm: MadeScheduler) -> None:
    started(ALONE, store, slurm).cycle()
    more = plan_of(ablation({"a": {}, "c": {"captions": {"source": "captioner", "count": 5}}}, seeds=3))
    one = started(more, store, slurm)
    one.cycle()
    assert {run: len(jobs) for run, jobs in jobs_by_run(slurm).items()} == dict.fromkeys(more.runs, 1)
    assert one.vanished() == []
    less = plan_of(ablation({"a": {}}, seeds=1))
    smaller = started(less, store, slurm)
    smaller.cycle()
    assert set(smaller.vanished()) == more.runs.keys() - less.runs.keys()


@pytest.mark.parametrize("asked", [True, False])
def test_an_answer_that_is_lost_doubles_nothing(store: Store, slurm: MadeScheduler, asked: bool) -> None:
    slurm.lost_answer = True
    one = started(ALONE, store, slurm) if asked else None
    (one or started(ALONE, store, slurm)).cycle()
    slurm.lost_answer = False
    (one or started(ALONE, store, slurm)).cycle()
    assert slurm.calls.count("submit") == 1
    assert started(ALONE, store, slurm).progress().waiting == 0, "before it has looked"
    again = started(ALONE, store, slurm)
    again.cycle()
    assert not again.without_jobs()


def test_a_command_killed_around_sbatch(store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def die(_self: object, *_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:  # after: the jobs run, though nobody has written down which they are
        patch.setattr("harness.execute.slurm.submission_log.Submission.accept", die)
        with pytest.raises(KilledError):
            started(ALONE, store, slurm).cycle()
    assert len(slurm.jobs) == 3
    one = started(ALONE, store, slurm)
    one.cycle()
    assert not one.without_jobs()
    assert "found as job 1" in one.progress().notes[0]
    assert len(slurm.jobs) == 3


def test_an_intent_that_slurm_never_heard_of(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_before_sbatch(ALONE, store, slurm)
    one = started(ALONE, store, slurm)
    one.cycle()
    assert slurm.jobs == {}, "its sbatch may still be on its way"
    monkeypatch.setattr(job_tracker, "ADOPTION_S", 0.0)
    one.cycle()
    assert len(slurm.jobs) == 3
    withdrawn = list((store.root / "submissions").glob("*/closed.json"))
    assert len(withdrawn) == 1, "a job of it that starts after all leaves at once"


def test_students_wait_for_a_teacher_whose_job_is_not_known(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command died around the teacher's sbatch: students could not name its job, and would find no teacher."""
    die_before_sbatch(PLAN, store, slurm)
    one = started(PLAN, store, slurm)
    one.cycle()
    assert not set(B) & jobs_by_run(slurm).keys()
    monkeypatch.setattr(job_tracker, "ADOPTION_S", 0.0)
    one.cycle()
    (teacher,) = jobs_by_run(slurm)[TEACHER]
    for run in B:
        (job,) = jobs_by_run(slurm)[run]
        assert slurm.batches[job.partition("_")[0]].after == (teacher,)


def test_a_job_killed_for_memory_before_it_began_gets_more(store: Store, slurm: MadeScheduler) -> None:
    """Only accounting knows how much memory it held, though the queue still shows that it failed."""
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    slurm.end("1_0", "FAILED", reason="9:0")
    slurm.jobs["1_0"] = replace(slurm.jobs["1_0"], memory_share=1.5)
    one.cycle()
    (run,) = plan.runs
    assert causes(store.run(run)) == ["out_of_memory_host"]
    assert slurm.batches["2"].resources.mem_gb == 8 * Retry().mem_factor


def test_the_accounts_of_a_killed_job_may_come_late(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be tried again with too little memory, until it is given up."""
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    slurm.end("1_0", "FAILED", reason="9:0")
    one.cycle()
    (run,) = plan.runs
    assert store.run(run).attempts.all() == []
    slurm.jobs["1_0"] = replace(slurm.jobs["1_0"], memory_share=1.5)
    one.cycle()
    assert causes(store.run(run)) == ["out_of_memory_host"]
    slurm.end("2_0", "FAILED", reason="9:0")
    monkeypatch.setattr(job_tracker, "LAG_S", 0.0)  # the time is up: it was not for memory
    one.cycle()
    assert causes(store.run(run)) == ["out_of_memory_host", "never_started"]


def test_the_output_of_a_killed_job_says_that_it_was_for_memory(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts hold samples of its use: a job that is killed while it starts may not have any."""
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    monkeypatch.setattr(job_tracker, "LAG_S", 0.0)
    (run,) = plan.runs
    (folder,) = (file.parent for file in store.root.glob("submissions/*/job.json"))
    (folder / "1_0_0_log.out").write_text("slurmstepd-n1: error: Exceeded job memory limit\nsrun: error: Killed\n")
    slurm.end("1_0", "FAILED", reason="9:0")
    one.cycle()
    assert causes(store.run(run)) == ["out_of_memory_host"]
    (folder / "2_0_0_log.out").write_text("srun: error: n1: task 0: Killed\n")
    slurm.end("2_0", "FAILED", reason="9:0")
    one.cycle()
    assert causes(store.run(run)) == ["out_of_memory_host", "never_started"]


def test_a_failed_job_that_accounting_does_not_show_yet_is_waited_for(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue knows first that a job failed; its exit code, here of a full disk, stands in the accounts alone."""
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    (run,) = plan.runs
    history = slurm.history
    monkeypatch.setattr(slurm, "history", lambda arrays: [])
    slurm.end("1_0", "FAILED", reason=f"{DISK_FULL}:0")
    one.cycle()
    assert causes(store.run(run)) == []
    monkeypatch.setattr(slurm, "history", history)
    one.cycle()
    (end,) = [attempt.end for attempt in store.run(run).attempts.all() if attempt.end]
    assert end.message == DISK_IS_FULL
    monkeypatch.setattr(slurm, "history", lambda arrays: [])
    monkeypatch.setattr(job_tracker, "LAG_S", 0.0)  # the time is up: what is known has to do
    slurm.end("2_0", "FAILED", reason="1:0")
    one.cycle()
    assert causes(store.run(run)) == ["never_started", "never_started"]


def test_a_cluster_without_accounting_is_not_waited_for(store: Store, slurm: MadeScheduler) -> None:
    slurm.with_accounting = False
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    slurm.end("1_0", "FAILED", reason="1:0")
    one.cycle()
    (run,) = plan.runs
    assert causes(store.run(run)) == ["never_started"]


def test_a_submission_without_an_answer_is_in_nobodys_hands(store: Store, slurm: MadeScheduler) -> None:
    die_before_sbatch(ALONE, store, slurm)
    one = started(ALONE, store, slurm)
    one.cycle()
    assert one.without_jobs() == tuple(sorted(ALONE.runs)), "SLURM may never have heard of it"
    assert one.progress().waiting == 0


def test_a_job_of_an_earlier_request_does_not_do_what_is_asked_now(store: Store, slurm: MadeScheduler) -> None:
    started(ALONE, store, slurm).cycle()
    more = plan_of(ablation({"a": {}}, seeds=3, base={"evaluation": {"sets": ["shapes", "more"]}}))
    one = started(more, store, slurm)
    one.cycle()
    assert one.without_jobs() == tuple(sorted(more.runs)), "its jobs were not asked for that set"
    again = started(ALONE, store, slurm)
    again.cycle()
    assert not again.without_jobs()
    store.run(min(ALONE.runs)).pause_at(100)
    assert again.without_jobs() == (min(ALONE.runs),), "a search will pause it"


def test_a_run_that_a_process_here_executes_is_waited_for(store: Store, slurm: MadeScheduler) -> None:
    """A local command may take a run that a quota holds back. A job would start at its last checkpoint."""
    slurm.most_jobs = 0
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    (run,), slurm.most_jobs = plan.runs, 10
    with store.run(run).claimed():
        one.cycle()
        assert slurm.jobs == {}
        assert one.progress().failed == {}
    one.cycle()
    assert len(slurm.jobs) == 1
    attempted(store.run(run), "1_0")
    slurm.end("1_0", "NODE_FAIL")
    with store.run(run)._lock():  # the process of that job lives on; the next one takes over
        one.cycle()
    assert len(slurm.jobs) == 2


def test_a_job_that_never_started_does_not_stop_the_process_that_has_its_run_by_now(
    store: Store, slurm: MadeScheduler
) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    slurm.end("1_0", "FAILED")
    folder = store.run(next(iter(plan.runs)))
    with folder.claimed():
        number = folder.attempts.newest()
        one.cycle()
        folder.attempts.check(number)
        folder.attempts.end(number, "interrupted", "")
    one.cycle()
    assert causes(folder) == ["interrupted", "never_started"]
    assert len(slurm.jobs) == 2


def test_an_evaluation_that_a_quota_holds_back_is_in_nobodys_hands(store: Store, slurm: MadeScheduler) -> None:
    plan, slurm.most_jobs = plan_of(ablation({"a": {}}, seeds=1)), 1
    one = started(plan, store, slurm, evaluation={"mem_gb": 4})
    one.cycle()
    assert len(slurm.jobs) == 1
    assert one.without_jobs()
    slurm.most_jobs = 2
    again = started(plan, store, slurm, evaluation={"mem_gb": 4})
    again.cycle()
    assert again.without_jobs(), "it waits for the training"


def test_arrays_are_split_and_held_back_at_quotas(store: Store, slurm: MadeScheduler) -> None:
    slurm.max_array, slurm.most_jobs = 4, 10
    plan = plan_of(ablation({"a": {}}, seeds=25))
    one = started(plan, store, slurm)
    one.cycle()
    assert [batch.tasks for batch in slurm.batches.values()] == [4, 4, 2]
    assert one.without_jobs()
    assert "no more jobs" in " ".join(one.progress().notes) or "QOSMax" in " ".join(one.progress().notes)
    for job in list(slurm.jobs):
        complete(plan, store, slurm.runs_of(job)[0])
        slurm.end(job, "COMPLETED")
    one._held_until = 0.0
    one.cycle()
    assert sum(batch.tasks for batch in slurm.batches.values()) == 20
    assert {len(jobs) for jobs in jobs_by_run(slurm).values()} == {1}


def test_packing(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=10))
    started(plan, store, slurm, pack=4, at_a_time=2).cycle()
    assert [len(slurm.runs_of(job)) for job in slurm.jobs] == [4, 4, 2]
    assert sorted(run for job in slurm.jobs for run in slurm.runs_of(job)) == sorted(plan.runs)


def test_evaluation_on_cheaper_resources(store: Store, slurm: MadeScheduler) -> None:
    cheap = {"partitions": ["cpu"], "time_limit_min": 5}
    started(ALONE, store, slurm, evaluation=cheap).cycle()
    training, evaluation = slurm.batches.values()
    assert (training.tasks, evaluation.tasks) == (3, 3)
    assert evaluation.corresponding == "1"
    assert (evaluation.resources.partitions, evaluation.resources.gpus) == (("cpu",), 0)
    for task, run in enumerate(ALONE.runs):
        attempted(store.run(run), f"1_{task}", "completed", step=300)
        train(store.run(run))
        slurm.end(f"1_{task}", "COMPLETED")
        attempted(store.run(run), f"2_{task}", "node_failure")
        slurm.end(f"2_{task}", "NODE_FAIL")
    started(ALONE, store, slurm, evaluation=cheap).cycle()
    assert list(slurm.batches.values())[2].resources.partitions == ("cpu",), "what is trained is only measured"
    assert len(slurm.batches) == 3


ENDS: list[tuple[str, str, Cause]] = [
    ("NODE_FAIL", "0:0", "node_failure"),
    ("TIMEOUT", "0:15", "timed_out"),
    ("PREEMPTED", "0:15", "preempted"),
    ("OUT_OF_MEMORY", "0:125", "out_of_memory_host"),
    ("FAILED", "1:0", "crashed"),
]


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize(("state", "reason", "cause"), ENDS)
def test_a_job_that_died_has_its_cause_and_is_tried_again(
    store: Store, slurm: MadeScheduler, state: str, reason: str, cause: Cause, forget: bool
) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    started(plan, store, slurm).cycle()
    slurm.run("1_0")
    attempted(store.run(run), "1_0", step=50)
    started(plan, store, slurm).cycle()
    assert len(slurm.batches) == 1
    slurm.end("1_0", state, reason=reason, forget=forget)
    started(plan, store, slurm).cycle()
    assert causes(store.run(run)) == [cause]
    assert len(slurm.batches) == 2
    second = slurm.batches["2"].resources
    assert second.mem_gb == (16 if cause == "out_of_memory_host" else 8)
    first = store.run(run).attempts.all()[0]
    assert second.exclude == ((first.start.host,) if cause == "node_failure" else ())
    assert first.end is not None
    assert (first.end.step, first.end.ended_at) == (50, 100.0)


@pytest.mark.parametrize("begun", [False, True])
def test_a_full_disk_is_named(store: Store, slurm: MadeScheduler, begun: bool) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one = started(plan, store, slurm, retry={"attempts": 2})
    for number in (1, 2):
        one.cycle()
        if begun:
            attempted(store.run(run), f"{number}_0")
        slurm.end(f"{number}_0", "FAILED", reason="74:0")
    one.cycle()
    (failure,) = one.progress().failed.values()
    assert "the disk of the store is full, or a quota is used up: free space" in failure.message


def test_a_killed_step_that_held_its_memory_ran_out_of_it(store: Store, slurm: MadeScheduler) -> None:
    """Without cgroups SLURM says FAILED, and no more."""
    from dataclasses import replace

    from harness.execute.slurm.retry_policy import cause_of

    plan = plan_of(ablation({"a": {}}, seeds=1))
    started(plan, store, slurm).cycle()
    slurm.end("1_0", "FAILED", reason="9:0")
    assert cause_of(slurm.jobs["1_0"]) == "crashed"
    assert cause_of(replace(slurm.jobs["1_0"], memory_share=0.97)) == "out_of_memory_host"


def test_earlier_restarts_of_a_job_have_their_own_causes(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    started(plan, store, slurm).cycle()
    for restart, state in enumerate(("NODE_FAIL", "PREEMPTED", "COMPLETED")):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        attempted(store.run(run), "1_0", step=50 * (restart + 1))
        slurm.end("1_0", state)
        if state != "COMPLETED":
            slurm.past.append(slurm.jobs["1_0"])
    complete(plan, store, run)
    one = started(plan, store, slurm)
    one._open.add(run)  # it was being watched
    one.cycle()
    assert causes(store.run(run)) == ["node_failure", "preempted", "completed"]
    assert SubmissionLog(store).open() == []


def test_without_accounting_the_same_ends_are_reached(store: Store, slurm: MadeScheduler) -> None:
    slurm.with_accounting = False
    started(ALONE, store, slurm).cycle()
    first, second, third = ALONE.runs
    complete(ALONE, store, first)
    attempted(store.run(second), "1_1", step=9)
    attempted(store.run(second), "1_1", step=9)
    for task in range(3):
        slurm.end(f"1_{task}", "FAILED", forget=True)
    started(ALONE, store, slurm).cycle()
    assert causes(store.run(second)) == ["node_failure", "crashed"]
    assert causes(store.run(third)) == ["never_started"]
    assert sorted(run for job in slurm.jobs for run in slurm.runs_of(job)) == sorted([second, third])


def test_a_silent_controller_means_that_nothing_is_known(store: Store, slurm: MadeScheduler) -> None:
    one = started(ALONE, store, slurm)
    one.cycle()
    slurm.silent = True
    before = list(slurm.batches)
    for _ in range(3):
        one.cycle()
        assert "does not answer" in one.progress().notes[0]
    assert list(slurm.batches) == before
    assert all(causes(store.run(run)) == [] for run in ALONE.runs)
    slurm.silent = False
    one.cycle()
    assert not one.without_jobs()


def test_a_silent_accounting_is_waited_for(store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one = started(plan, store, slurm)
    one.cycle()
    attempted(store.run(run), "1_0")
    slurm.end("1_0", "NODE_FAIL", forget=True)
    slurm.accounting_silent = True
    one.cycle()
    assert (causes(store.run(run)), len(slurm.batches)) == ([""], 1)
    slurm.accounting_silent = False
    one.cycle()
    assert (causes(store.run(run)), len(slurm.batches)) == (["node_failure"], 2)
    attempted(store.run(run), "2_0")
    slurm.end("2_0", "NODE_FAIL", forget=True)
    slurm.accounting_silent = True
    monkeypatch.setattr(job_tracker, "PATIENCE_S", 0.0)
    one.cycle()
    assert (causes(store.run(run)), len(slurm.batches)) == (["node_failure", "crashed"], 3)


def test_user_errors_are_told_once_and_stop_nobody_else(store: Store, slurm: MadeScheduler) -> None:
    one = started(ALONE, store, slurm)
    one.cycle()
    bad, *good = ALONE.runs
    attempted(store.run(bad), "1_0", "user_error", message="no such file")
    slurm.end("1_0", "FAILED", reason="1:0")
    for run in good:
        attempted(store.run(run), f"1_{list(ALONE.runs).index(run)}")
    one.cycle()
    one.cycle()
    assert {run: failure.message for run, failure in one.progress().failed.items()} == {bad: "no such file"}
    assert len(slurm.batches) == 1
    again = started(ALONE, store, slurm)
    again.cycle()
    assert len(slurm.batches) == 2, "a person has read it and asks again"
    assert slurm.runs_of("2_0") == (bad,)


def test_a_run_without_progress_is_given_up(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one = started(plan, store, slurm, retry={"attempts": 3})
    for number in range(1, 4):
        one.cycle()
        assert len(slurm.batches) == number
        attempted(store.run(run), f"{number}_0", step=7)
        slurm.end(f"{number}_0", "NODE_FAIL")
    one.cycle()
    one.cycle()
    assert len(slurm.batches) == 4, "the first came further than nothing"
    attempted(store.run(run), "4_0", step=7)
    slurm.end("4_0", "NODE_FAIL")
    one.cycle()
    (failure,) = one.progress().failed.values()
    assert failure.cause == "node_failure"
    assert "no progress in 3 attempts" in failure.message


def test_progress_is_never_given_up(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one = started(plan, store, slurm, retry={"attempts": 2})
    for number in range(1, 12):
        one.cycle()
        attempted(store.run(run), f"{number}_0", step=number)
        slurm.end(f"{number}_0", "TIMEOUT")
    one.cycle()
    assert len(slurm.batches) == 12
    assert one.progress().failed == {}


ABSENT = plan_of(ablation({"a": {}}, seeds=1, base={"evaluation": {"sets": ["shapes", "retrieval"]}}))
"""Asks for a suite, none of whose sets is on this machine."""


def test_sets_of_a_suite_that_are_absent_are_not_waited_for(store: Store, slurm: MadeScheduler) -> None:
    (run,) = ABSENT.runs.values()
    one = started(ABSENT, store, slurm)
    one.cycle()
    assert read_request(store.run(run.id)).experiment.evaluation.sets == ("shapes",)
    slurm.run("1_0")
    attempted(store.run(run.id), "1_0", "completed", step=300)
    complete(ABSENT, store, run.id, ["shapes"])
    slurm.end("1_0", "COMPLETED")
    for _ in range(3):
        one.cycle()
        started(ABSENT, store, slurm).cycle()
    assert (one.progress().done, len(slurm.batches)) == (1, 1)


@pytest.mark.parametrize("sets", [["shapes", "more"], ["shapes"]])
def test_a_run_that_ended_well_is_never_submitted_for_the_same_work(
    store: Store, slurm: MadeScheduler, sets: list[str]
) -> None:
    """Whatever this code believes to be missing: its job was asked for it, and says that it is done."""
    plan = plan_of(ablation({"a": {}}, seeds=1, base={"evaluation": {"sets": ["shapes", "more"]}}))
    (run,) = plan.runs
    one = started(plan, store, slurm)
    one.cycle()
    attempted(store.run(run), "1_0", "completed", step=300)
    complete(plan, store, run, sets)
    slurm.end("1_0", "COMPLETED")
    for _ in range(3):
        one.cycle()
        started(plan, store, slurm).cycle()
    assert len(slurm.batches) == 1
    failed = [failure.message for failure in one.progress().failed.values()]
    told = f"attempt 1 completed without results on more; see {store.run(run).log}"
    assert failed == ([told] if sets == ["shapes"] else [])


def test_a_new_set_is_measured_by_a_job_that_was_not_asked_before(store: Store, slurm: MadeScheduler) -> None:
    started(ALONE, store, slurm).cycle()
    for task, run in enumerate(ALONE.runs):
        attempted(store.run(run), f"1_{task}", "completed", step=300)
        complete(ALONE, store, run)
        slurm.end(f"1_{task}", "COMPLETED")
    more = plan_of(ablation({"a": {}}, seeds=3, base={"evaluation": {"sets": ["shapes", "more"]}}))
    one = started(more, store, slurm)
    one.cycle()
    assert len(slurm.batches) == 2
    for number in range(2, 2 + Retry().attempts):  # its jobs die before they start: `setup = ["exit 1"]`
        for task in range(3):
            slurm.end(f"{number}_{task}", "FAILED", reason="1:0")
        one.cycle()
    failed = one.progress().failed
    assert failed.keys() == more.runs.keys()
    assert all("no progress in" in failure.message for failure in failed.values())
    assert set(causes(store.run(next(iter(more.runs))))[1:]) == {"never_started"}
    assert len(slurm.batches) == 1 + Retry().attempts


def test_a_sweep_that_submits_without_progress_stops(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last brake: it needs no cause of any attempt."""
    monkeypatch.setattr(sweep, "hopeless", lambda *_: None)
    one = started(plan_of(ablation({"a": {}}, seeds=1)), store, slurm)
    for number in range(1, 3 * MOST_STARTS):
        one.cycle()
        if len(slurm.batches) == number:
            slurm.end(f"{number}_0", "PREEMPTED")
    assert len(slurm.batches) == MOST_STARTS
    (failure,) = one.progress().failed.values()
    assert "without progress, still missing trained weights" in failure.message


def test_the_last_brake_holds_under_a_quota(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "hopeless", lambda *_: None)
    slurm.most_jobs = 1
    one = started(plan_of(ablation({"a": {}}, seeds=2)), store, slurm)
    for number in range(1, 5 * MOST_STARTS):
        one.cycle()
        if len(slurm.batches) == number:
            slurm.end(f"{number}_0", "PREEMPTED")
    assert len(slurm.batches) == 2 * MOST_STARTS
    assert len(one.progress().failed) == 2


def test_a_job_that_slurm_failed_to_launch_is_released_a_few_times(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    one = started(plan, store, slurm)
    one.cycle()
    for _ in range(3):
        slurm.hold("1_0")
        one.cycle()
        assert slurm.jobs["1_0"].reason == "Priority"
        assert "SLURM failed to launch job 1_0: released" in one.progress().notes
    slurm.hold("1_0")
    one.cycle()
    assert slurm.jobs["1_0"].is_stuck
    assert "failed 3 times to launch job 1_0" in one.progress().notes[-1]
    assert one.progress().failed == {}
    assert len(slurm.batches) == 1


def test_jobs_that_a_person_holds_stay_held(store: Store, slurm: MadeScheduler) -> None:
    one = started(plan_of(ablation({"a": {}}, seeds=1)), store, slurm)
    one.cycle()
    slurm.jobs["1_0"] = replace(slurm.jobs["1_0"], reason="JobHeldUser")
    one.cycle()
    assert slurm.jobs["1_0"].reason == "JobHeldUser"
    assert "release" not in slurm.calls


def test_memory_grows_to_its_limit(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one = started(plan, store, slurm, retry={"max_mem_gb": 20})
    for number in range(1, 4):
        one.cycle()
        attempted(store.run(run), f"{number}_0", "out_of_memory_host")
        slurm.end(f"{number}_0", "FAILED", reason="1:0")
    one.cycle()
    assert [batch.resources.mem_gb for batch in slurm.batches.values()] == [8, 16, 20]
    (failure,) = one.progress().failed.values()
    assert failure.message == "20 GiB of memory were not enough; see retry.max_mem_gb"


def test_students_of_a_failed_teacher(store: Store, slurm: MadeScheduler) -> None:
    one = started(PLAN, store, slurm)
    one.cycle()
    (teacher,) = jobs_by_run(slurm)[TEACHER]
    attempted(store.run(TEACHER), teacher, "user_error", message="bad data")
    slurm.end(teacher, "FAILED", reason="1:0")
    for run in B:
        (job,) = jobs_by_run(slurm)[run]
        attempted(store.run(run), job, "no_teacher", message="its teacher is not trained")
        slurm.end(job, "FAILED", reason="1:0")
    for run in A:
        complete(PLAN, store, run)
        slurm.end(jobs_by_run(slurm)[run][0], "COMPLETED")
    *_, last = one.run()
    assert last.done == 2
    assert {run: failure.cause for run, failure in last.failed.items()} == {
        TEACHER: "user_error",
        **dict.fromkeys(B, "never_started"),
    }
    assert f"its teacher, run {TEACHER}, failed: bad data" in last.failed[B[0]].message


def test_a_student_is_not_given_up_for_what_its_teachers_jobs_did(store: Store, slurm: MadeScheduler) -> None:
    """Its own attempts stay: a crash before, and one after, are two of three."""
    one = started(PLAN, store, slurm, retry={"attempts": 3})
    student = B[0]
    for number in range(5):
        one.cycle()
        teacher, job = (jobs_by_run(slurm)[run][-1] for run in (TEACHER, student))
        if number < 2:
            slurm.end(teacher, "FAILED", reason="1:0")
            attempted(store.run(student), job, "no_teacher", message="its teacher is not trained")
        elif number == 2:
            complete(PLAN, store, TEACHER)
            slurm.end(teacher, "COMPLETED")
        if number >= 2:
            attempted(store.run(student), job, "crashed", message=f"crash {number}")
        slurm.end(job, "FAILED", reason="1:0")
        assert (student in one.progress().failed) is False
    one.cycle()
    assert causes(store.run(student)) == ["no_teacher"] * 2 + ["crashed"] * 3
    assert "no progress in 3 attempts" in one.progress().failed[student].message


def test_a_student_waits_while_only_the_evaluation_of_its_failed_teacher_is_queued(
    store: Store, slurm: MadeScheduler
) -> None:
    slurm.most_jobs = 0
    one = started(PLAN, store, slurm, evaluation={"mem_gb": 4})
    one.cycle()
    slurm.most_jobs = 2
    one.cycle()
    teacher, evaluation = jobs_by_run(slurm)[TEACHER]
    attempted(store.run(TEACHER), teacher, "crashed")
    slurm.end(teacher, "FAILED", reason="1:0")
    slurm.most_jobs = 10**6
    again = started(PLAN, store, slurm, evaluation={"mem_gb": 4})
    again.cycle()
    assert not jobs_by_run(slurm).keys() & set(B), "no job trains their teacher"
    slurm.end(evaluation, "CANCELLED")
    again.cycle()
    assert set(B) <= jobs_by_run(slurm).keys()


def test_a_failure_that_one_command_told_is_not_told_by_the_next_of_another_spec(
    store: Store, slurm: MadeScheduler
) -> None:
    started(replace(ALONE, name="other"), store, slurm, evaluation={"mem_gb": 4}).cycle()
    run = next(iter(ALONE.runs))
    training, evaluation = jobs_by_run(slurm)[run]
    attempted(store.run(run), training, "user_error", message="bad data")
    slurm.end(training, "FAILED", reason="1:0")
    slurm.end(evaluation, "CANCELLED")
    for failed in ([run], []):
        one = started(ALONE, store, slurm, evaluation={"mem_gb": 4})
        one.cycle()
        assert list(one.progress().failed) == failed


def test_cancelled_jobs_are_left_until_a_person_asks_again(store: Store, slurm: MadeScheduler) -> None:
    one = started(ALONE, store, slurm)
    one.cycle()
    slurm.cancel(["1_0", "1_1", "1_2"])
    one.cycle()
    assert {failure.cause for failure in one.progress().failed.values()} == {"cancelled"}
    assert len(slurm.batches) == 1
    started(ALONE, store, slurm).cycle()
    assert len(slurm.batches) == 2


def test_a_follower_that_leaves_later_does_not_make_an_old_cancellation_new(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    started(plan, store, slurm, evaluation={"mem_gb": 4}).cycle()
    slurm.cancel(["1_0"])  # scancel, before the next command begins; the evaluation 2_0 is still queued
    again = started(plan, store, slurm, evaluation={"mem_gb": 4})
    again.cycle()
    slurm.end("2_0", "CANCELLED")  # its dependency can never be satisfied
    for _ in range(2):
        again.cycle()
    assert again.progress().failed == {}
    assert len(slurm.batches) == 4, "a new training and its evaluation"


@pytest.fixture
def cancel(slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[str], Store], Cancelled]:
    """`harness cancel`, in another shell."""
    monkeypatch.setattr(jobs, "Slurm", lambda: slurm)
    return cancel_jobs


Cancel = Callable[[Collection[str], Store], Cancelled]


@pytest.mark.parametrize("silent", ["accounting_silent", "silent"])
def test_the_last_job_is_cancelled_though_another_of_the_first_array_goes_on(
    store: Store, slurm: MadeScheduler, cancel: Cancel, silent: str
) -> None:
    started(ALONE, store, slurm).cycle()
    run = slurm.runs_of("1_1")[0]
    cancel([run], store)
    again = started(ALONE, store, slurm)
    again.cycle()
    again.cycle()
    del slurm.jobs["1_1"]
    setattr(slurm, silent, True)
    cancel([run], store)
    first, last = SubmissionLog(store).open()
    assert [first.was_cancelled(task) for task in range(3)] == [False, True, False]
    assert last.was_cancelled(0)


@pytest.mark.parametrize("silent", ["accounting_silent", "silent"])
def test_the_last_job_is_cancelled_though_nobody_tells_how_those_before_ended(
    store: Store, slurm: MadeScheduler, cancel: Cancel, silent: str
) -> None:
    for number in range(2):
        started(ALONE, store, slurm, evaluation={"mem_gb": 4}).cycle()
        setattr(slurm, silent, number == 1)
        cancel(ALONE.runs, store)
        for job in [job for job in slurm.jobs if slurm.jobs[job].phase == "ended"]:
            del slurm.jobs[job]
    last = SubmissionLog(store).open()[-2:]
    assert [one.intent.phase for one in last] == ["train", "evaluate"]
    assert all(one.was_cancelled(task) for one in last for task in range(3))


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_run_stays_cancelled_while_a_command_watches(
    store: Store, slurm: MadeScheduler, cancel: Cancel, begun: bool
) -> None:
    one = started(ALONE, store, slurm)
    one.cycle()
    run = next(iter(ALONE.runs))
    if begun:
        slurm.run("1_0")
        attempted(store.run(run), "1_0", step=50)
        one.cycle()
    assert cancel([run], store).jobs == 1
    for _ in range(3):
        one.cycle()
    assert {name: failure.cause for name, failure in one.progress().failed.items()} == {run: "cancelled"}
    assert len(slurm.batches) == 1
    started(ALONE, store, slurm).cycle()
    assert len(slurm.batches) == 2, "until a person asks again"


def test_a_cancelled_evaluation_stays_cancelled(store: Store, slurm: MadeScheduler, cancel: Cancel) -> None:
    started(ALONE, store, slurm).cycle()
    for task, run in enumerate(ALONE.runs):
        attempted(store.run(run), f"1_{task}", "completed", step=300)
        complete(ALONE, store, run)
        slurm.end(f"1_{task}", "COMPLETED")
    more = plan_of(ablation({"a": {}}, seeds=3, base={"evaluation": {"sets": ["shapes", "more"]}}))
    one = started(more, store, slurm)
    one.cycle()
    run = next(iter(more.runs))
    assert cancel([run], store).jobs == 1
    for _ in range(3):
        one.cycle()
    assert {name: failure.cause for name, failure in one.progress().failed.items()} == {run: "cancelled"}
    assert len(slurm.batches) == 2


def test_a_command_after_cancel_waits_for_the_job_that_leaves(
    store: Store, slurm: MadeScheduler, cancel: Cancel, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(ALONE, store, slurm).cycle()
    for task, run in enumerate(ALONE.runs):
        slurm.run(f"1_{task}")
        attempted(store.run(run), f"1_{task}", step=50)
    monkeypatch.setattr(slurm, "cancel", lambda _jobs: None)  # they write their checkpoints yet
    cancel(list(ALONE.runs), store)
    again = started(ALONE, store, slurm)
    again.cycle()
    assert again.without_jobs(), "those jobs do not go on with the runs"
    for task, run in enumerate(ALONE.runs):
        store.run(run).attempts.end(1, "cancelled", "asked to", step=60)
        slurm.end(f"1_{task}", "CANCELLED")
    again.cycle()
    assert again.progress().failed == {}
    assert not again.without_jobs()
    assert len(slurm.batches) == 2


def test_a_wish_to_cancel_outlives_a_dead_controller(store: Store, slurm: MadeScheduler, cancel: Cancel) -> None:
    one = started(ALONE, store, slurm)
    one.cycle()
    slurm.silent = True
    cancelled = cancel(list(ALONE.runs)[:2], store)
    assert (cancelled.jobs, cancelled.pending) == (0, 2)
    assert "does not answer" in cancelled.notes[0]
    one.cycle()
    slurm.silent = False
    for task in (0, 1):  # they start, see the wish, and leave at once
        slurm.end(f"1_{task}", "COMPLETED")
    for _ in range(3):
        one.cycle()
    assert {failure.cause for failure in one.progress().failed.values()} == {"cancelled"}
    assert set(one.progress().failed) == set(list(ALONE.runs)[:2])
    assert len(slurm.batches) == 1


def test_a_job_that_is_not_known_yet_is_cancelled_too(store: Store, slurm: MadeScheduler, cancel: Cancel) -> None:
    die_before_sbatch(ALONE, store, slurm)
    cancelled = cancel(list(ALONE.runs), store)
    assert (cancelled.jobs, cancelled.pending) == (0, 3)
    (submission,) = SubmissionLog(store).open()
    assert submission.settled() == {0, 1, 2}, "a job of it that starts after all finds the request"


def test_what_jobs_may_have_does_not_run_here(store: Store, slurm: MadeScheduler, cancel: Cancel) -> None:
    started(ALONE, store, slurm).cycle()
    slurm.silent = True
    with pytest.raises(DispatchError, match=r"3 runs of it may be \(queue does not answer.*cancel them first"):
        refuse_what_jobs_have(ALONE.runs, "alone", store)
    cancel(list(ALONE.runs), store)
    refuse_what_jobs_have(ALONE.runs, "alone", store)  # their jobs exit when they find the request


def test_a_quota_that_lets_some_jobs_through_is_asked_again_at_once(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("harness.execute.slurm.executor.time.monotonic", lambda: now[0])
    slurm.most_jobs = 1
    plan = plan_of(ablation({"a": {}}, seeds=6))
    one = started(plan, store, slurm)
    for number, run in enumerate(plan.runs, 1):
        one.cycle()
        assert len(slurm.batches) == number, "an empty queue ends the wait"
        attempted(store.run(run), f"{number}_0", "completed", step=300)
        complete(plan, store, run)
        slurm.end(f"{number}_0", "COMPLETED")
    one.cycle()
    assert one.progress().done == 6


def test_a_plan_is_known_by_its_file_and_not_by_its_name(store: Store, slurm: MadeScheduler, tmp_path: Path) -> None:
    plans = [plan_of(ablation({"a": {"seed": 0}}, seeds=(seed,))) for seed in (1, 2)]
    for number, plan in enumerate(plans):
        plan.file = tmp_path / f"folder{number}" / "same.toml"
        started(plan, store, slurm).cycle()
    again = started(plans[0], store, slurm)
    again.cycle()
    assert again.vanished() == []
    edited = plan_of(ablation({"a": {"seed": 0}}, seeds=(3,)))
    edited.file = plans[0].file
    one = started(edited, store, slurm)
    one.cycle()
    assert set(one.vanished()) == set(plans[0].runs)


def test_a_refusal_loses_nothing(store: Store, slurm: MadeScheduler) -> None:
    def refuse(batch: ArrayRequest) -> None:
        raise RefusedError("SLURM refuses the job (Invalid qos specification)", where=batch.name, fix="change it")

    slurm.answer = refuse
    one = started(ALONE, store, slurm)
    with pytest.raises(RefusedError, match="Invalid qos"):
        one.cycle()
    slurm.answer = lambda _batch: None
    started(ALONE, store, slurm).cycle()
    assert len(slurm.jobs) == 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"partitions": ["gpus"]}, "profile: partitions: there is no partition 'gpus'; there are: cpu, gpu"),
    ({"account": "yours"}, "profile: account: there is no account 'yours' for you; yours: mine, ours"),
    ({"gpus_per_task": 8}, "profile: gpus_per_task: requests 8 GPUs on a node, but partition 'gpu' has 4"),
    ({"mem_gb": 100}, "profile: mem_gb: requests 100 GiB of memory on a node, but partition 'gpu' has 64"),
    ({"cpus_per_task": 99}, "profile: cpus_per_task: requests 99 cores on a node, but partition 'gpu' has 16"),
    ({"nodes": 9}, "profile: nodes: requests 9 nodes, but partition 'gpu' has 4"),
    ({"time_limit_min": 9999}, "profile: time_limit_min: requests 9999 minutes, but partition 'gpu' has 1440"),
    ({"evaluation": {"partitions": ["x"]}}, "profile: evaluation: partitions: there is no partition 'x'"),
]


@pytest.mark.parametrize(("profile", "sentence"), BAD)
def test_what_no_node_has_is_said_before_anything_is_submitted(
    store: Store, slurm: MadeScheduler, profile: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError) as caught:
        started(ALONE, store, slurm, **profile).cycle()
    assert str(caught.value).startswith(sentence)
    assert slurm.batches == {}


def test_one_partition_of_several_is_enough(store: Store, slurm: MadeScheduler) -> None:
    started(ALONE, store, slurm, partitions=["cpu", "gpu"]).cycle()
    assert len(slurm.jobs) == 3


def test_one_query_for_all_jobs(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=60))
    slurm.max_array = 10
    one = started(plan, store, slurm)
    one.cycle()
    slurm.calls.clear()
    one.cycle()
    assert slurm.calls == ["queue"]
    for job in list(slurm.jobs):
        attempted(store.run(slurm.runs_of(job)[0]), job)
        slurm.end(job, "NODE_FAIL", forget=True)
    slurm.calls.clear()
    one.cycle()
    assert slurm.calls.count("history") == 1
    assert slurm.calls.count("queue") == 1


def test_gpu_memory_halves_the_micro_batch_and_keeps_the_global_one(store: Store, slurm: MadeScheduler) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one = started(plan, store, slurm, tasks_per_node=2)
    sizes = []
    for number in range(1, 4):
        one.cycle()
        request = read_request(store.run(run))
        sizes.append(request.experiment.resources.micro_batch_size)
        assert request.experiment.train.global_batch_size == 128
        attempted(store.run(run), f"{number}_0", "out_of_memory_gpu", message=f"asked for {number} GB")
        slurm.end(f"{number}_0", "FAILED", reason="1:0")
    assert sizes == ["auto", 32, 16]
    assert {batch.resources.mem_gb for batch in slurm.batches.values()} == {8}


def test_causes_are_told_although_the_runs_were_done_before(
    store: Store, slurm: MadeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "FASTEST_S", 0.01)
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    started(plan, store, slurm).cycle()
    attempted(store.run(run), "1_0", step=9)
    slurm.past.append(Job("1_0", "ended", "NODE_FAIL"))
    attempted(store.run(run), "1_0", "completed", step=300)
    complete(plan, store, run)
    slurm.end("1_0", "COMPLETED")
    one = started(plan, store, slurm)
    assert one.progress().done == 1
    one.wrap_up()
    assert causes(store.run(run)) == ["node_failure", "completed"]
    assert SubmissionLog(store).open() == []
