"""The supervisor of a job, with made workers: causes, tries in place, leaving, going on, being superseded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.exit_status import DISK_FULL, DONE, SUPERSEDED
from harness.config.profile import JobResources, Profile
from harness.execute.local.processes import Ended
from harness.execute.slurm import job, node
from harness.execute.slurm.job_tracker import JobTracker
from harness.execute.slurm.node import Supervisor
from harness.execute.slurm.submission_log import Intent, Submission, SubmissionLog
from harness.execute.slurm.submitter import batch_of
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder
from harness.runs.record import Failure
from harness.runs.request import Request
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.execute.made import MadeScheduler, attempted, causes, complete, train
from tests.head.made import MINING, ablation, plan_of

JOB = "12_0"
PLAN = plan_of(ablation({"a": {}}, seeds=3))
RUNS = list(PLAN.runs)
Act = Callable[[RunFolder], int]
"""What a worker does with its run; returns its exit status."""


@pytest.fixture(autouse=True)
def _in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("HARNESS_SCHEDULED", "HARNESS_GPUS", "HARNESS_CORES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(node, "POLL_S", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def scontrol(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of scontrol; it says that the job was preempted."""
    asked: list[str] = []

    def answer(*arguments: str) -> str:
        asked.append(" ".join(arguments))
        return "JobId=12 JobState=RUNNING PreemptTime=1000 EndTime=99999999999 "

    monkeypatch.setattr(node, "scontrol", answer)
    monkeypatch.setattr(job, "scontrol", answer)
    return asked


class MadeWorkers:
    """Workers that act at once, or when they are asked to leave."""

    def __init__(self, store: Store, script: dict[str, list[Act]]) -> None:
        self.store, self.script = store, script
        self.started: list[str] = []
        self.alive: list[str] = []
        self.most = 0
        self.leaving = False

    def start(self, folder: Path) -> None:
        self.started.append(folder.name)
        self.alive.append(folder.name)
        self.most = max(self.most, len(self.alive))

    def ended(self, timeout_s: float) -> list[Ended]:
        found = []
        for run in list(self.alive):
            act = self.script[run][0]
            if act in (until_asked, until_stopped) and not self.leaving:
                time.sleep(timeout_s)
                if act is until_asked:
                    os.kill(os.getpid(), signal.SIGUSR2)
                continue
            self.alive.remove(run)
            if len(self.script[run]) > 1:
                self.script[run].pop(0)
            found.append(Ended(run, act(self.store.run(run))))
            break
        return found

    def stop(self) -> None:
        self.leaving = True

    def close(self) -> None:
        pass


def done(folder: RunFolder) -> int:
    attempted(folder, JOB, "completed", step=300)
    complete(PLAN, Store(folder.path.parents[1]), folder.id)
    return 0


def trained(folder: RunFolder) -> int:
    attempted(folder, JOB, "completed", step=300)
    train(folder)
    return 0


def paused(folder: RunFolder) -> int:
    attempted(folder, JOB, "completed", step=5)
    return 0


def user_error(folder: RunFolder) -> int:
    attempted(folder, JOB, "user_error", message="no such file")
    return 2


def killed(folder: RunFolder) -> int:
    attempted(folder, JOB, step=5)
    return -9


def superseded(folder: RunFolder) -> int:
    attempted(folder, JOB, "superseded")
    return SUPERSEDED


def disk_full(folder: RunFolder) -> int:
    """Nothing is written: no progress, no cause."""
    attempted(folder, JOB, step=5)
    return DISK_FULL


def until_asked(folder: RunFolder) -> int:
    attempted(folder, JOB, step=50)
    folder.fail(Failure(cause="interrupted", message="stopped on request", attempt=1, ended_at=1.0))
    return 75


def until_stopped(folder: RunFolder) -> int:
    return until_asked(folder)


def submitted(store: Store, plan: Plan = PLAN, phase: Any = "run", **profile: Any) -> Submission:
    made = Profile.model_validate({"gpus_per_task": 1, "pack": 3} | profile)
    resources = JobResources.model_validate({name: getattr(made, name) for name in JobResources.model_fields})
    intent = Intent.of(
        "made",
        phase,
        [list(plan.runs)],
        resources=resources,
        profile=made,
        store=store.root,
        code=store.root,
        allowance_gpu_hours=profile.get("allowance"),
    )
    for run in plan.runs.values():
        request = Request.of(run.experiment, run.id, run.teacher, Settings(store=store.root), 1)
        store.run(run.id).prepare(run.identity, request.model_dump(mode="json") | {"submission": intent.id})
    return SubmissionLog(store).add(intent)


def carried_out(submission: Submission, store: Store, *acts: list[Act]) -> tuple[int, MadeWorkers]:
    one = Supervisor(submission, 0, 0)
    workers = MadeWorkers(store, dict(zip(submission.intent.tasks[0], acts, strict=False)))
    one._workers = workers  # type: ignore[assignment]
    return one.work(), workers


def test_every_run_of_the_job(store: Store) -> None:
    status, workers = carried_out(submitted(store), store, [done], [done], [done])
    assert (status, workers.started, workers.most) == (DONE, RUNS, 1)
    assert [causes(store.run(run)) for run in RUNS] == [["completed"]] * 3


@pytest.mark.parametrize(("at_a_time", "gpus", "given"), [(2, 1, {0}), (3, 1, {0})])
def test_runs_share_a_job(store: Store, at_a_time: int, gpus: int, given: set[int]) -> None:
    submission = submitted(store, at_a_time=at_a_time, gpus_per_task=gpus, cpus_per_task=6)
    _, workers = carried_out(submission, store, [done], [done], [done])
    assert workers.most == at_a_time
    requests = [json.loads(store.run(run).request.read_text()) for run in RUNS]
    assert {request["threads"] for request in requests} == {6 // at_a_time}
    assert {request["gpu"] for request in requests} == given
    assert float(os.environ["HARNESS_GPUS"]) == 1 / at_a_time


def test_a_bad_run_stops_nobody_else(store: Store, scontrol: list[str]) -> None:
    status, workers = carried_out(submitted(store), store, [user_error], [done], [done])
    assert (status, workers.started) == (node.SOME_ARE_NOT, RUNS)
    assert causes(store.run(RUNS[0])) == ["user_error"]
    assert scontrol == []


def test_a_killed_worker_is_tried_again_in_place(store: Store) -> None:
    status, workers = carried_out(submitted(store), store, [killed, killed, done], [done], [done])
    assert status == DONE
    assert workers.started == [RUNS[0]] * 3 + RUNS[1:]
    assert causes(store.run(RUNS[0])) == ["crashed", "crashed", "completed"]
    assert store.run(RUNS[0]).attempts.all()[0].end.message == "its process died by signal 9"  # type: ignore[union-attr]


def test_one_of_several_processes_is_left_to_a_new_job(store: Store) -> None:
    status, workers = carried_out(submitted(store, tasks_per_node=2), store, [killed, done], [done], [done])
    assert (status, workers.started) == (node.SOME_ARE_NOT, RUNS)
    assert causes(store.run(RUNS[0])) == ["crashed"]


@pytest.mark.parametrize(("acts", "status"), [("bdd", DONE), ("bbd", DONE), ("bbb", node.SOME_ARE_NOT)])
def test_a_training_job_ends_well_if_there_is_something_to_evaluate(store: Store, acts: str, status: int) -> None:
    """SLURM cancels the evaluation of a job that failed: one bad run must not keep the others from being evaluated."""
    submission = submitted(store, phase="train")
    does: list[list[Act]] = [[trained if act == "d" else user_error] for act in acts]
    found, _ = carried_out(submission, store, *does)
    assert found == status
    _, workers = carried_out(submitted(store, phase="evaluate"), store, [done], [done], [done])
    assert workers.started == [run for run, act in zip(RUNS, acts, strict=True) if act == "d"]
    attempts = [len(store.run(run).attempts.all()) for run in RUNS]
    assert attempts == [2 if act == "d" else 1 for act in acts], "what is not trained is not blamed for it again"


@pytest.mark.parametrize(("phase", "status"), [("run", DONE), ("train", DONE)])
def test_a_run_that_pauses_where_it_was_asked_to_is_left_so(store: Store, phase: str, status: int) -> None:
    """And so it is when SLURM starts its job again."""
    submission = submitted(store, phase=phase)
    store.run(RUNS[0]).pause_at(5)
    acts: list[Act] = [paused, done, done]
    found, workers = carried_out(submission, store, *([act] for act in acts))
    assert (found, workers.started) == (status, RUNS)
    assert causes(store.run(RUNS[0])) == ["completed"]
    found, workers = carried_out(submission, store, *([act] for act in acts))
    assert (found, workers.started) == (DONE, [])
    store.run(RUNS[0]).pause_at(300)
    _, workers = carried_out(submission, store, [done])
    assert workers.started == RUNS[:1], "it was let go on in the meantime"


def test_a_worker_that_always_dies_is_left(store: Store) -> None:
    status, workers = carried_out(submitted(store, retry={"attempts": 3}), store, [killed], [done], [done])
    assert status == node.SOME_ARE_NOT
    assert workers.started.count(RUNS[0]) == 4, "the first came to step 5, the others no further"


def test_a_worker_that_ends_well_without_doing_anything_is_not_tried_again_in_place(store: Store) -> None:
    def idle(folder: RunFolder) -> int:
        attempted(folder, JOB, "completed")
        return DONE

    status, workers = carried_out(submitted(store), store, [idle], [done], [done])
    assert (status, workers.started) == (node.SOME_ARE_NOT, RUNS)


def test_a_full_disk_ends_the_job_and_its_exit_status_says_so(store: Store, scontrol: list[str]) -> None:
    submission = submitted(store, at_a_time=2)
    status, workers = carried_out(submission, store, [disk_full], [until_stopped])
    assert status == 74
    assert len(workers.started) == 2, "no third run begins, and the first is not tried again"
    assert not any("requeue" in call for call in scontrol)


def test_memory_is_told_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "out_of_memory", lambda: True)
    _, workers = carried_out(submitted(store), store, [killed], [done], [done])
    assert workers.started.count(RUNS[0]) == 1, "it needs more memory, which this job does not have"
    assert causes(store.run(RUNS[0])) == ["out_of_memory_host"]


def test_preempted(store: Store, scontrol: list[str]) -> None:
    status, workers = carried_out(submitted(store), store, [done], [until_asked], [done])
    assert (status, workers.started) == (node.SOME_ARE_NOT, RUNS[:2])
    assert causes(store.run(RUNS[1])) == ["preempted"]
    assert scontrol == [f"--oneliner show job {JOB}", f"requeue {JOB}"]


ANSWERS: list[tuple[str, str, bool]] = [
    ("JobState=RUNNING PreemptTime=None EndTime={soon}", "timed_out", True),
    ("JobState=RUNNING PreemptTime=None EndTime=99999999999", "preempted", True),
    ("JobState=CANCELLED PreemptTime=None EndTime=1", "cancelled", False),
    ("JobState=COMPLETING PreemptTime=None", "", False),
    ("", "", True),
]


@pytest.mark.parametrize(("answer", "cause", "again"), ANSWERS)
def test_why_it_has_to_leave(
    store: Store, monkeypatch: pytest.MonkeyPatch, answer: str, cause: str, again: bool
) -> None:
    asked: list[str] = []

    def scontrol(*arguments: str) -> str:
        asked.append(arguments[0])
        return answer.format(soon=int(time.time()) + 100)

    monkeypatch.setattr(node, "scontrol", scontrol)
    monkeypatch.setattr(job, "scontrol", scontrol)
    carried_out(submitted(store), store, [until_asked], [done], [done])
    assert causes(store.run(RUNS[0])) == [cause]
    assert ("requeue" in asked) == again


@pytest.mark.parametrize("again", [True, False])
def test_a_job_that_slurm_ends_tells_why_when_it_starts_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr(job, "scontrol", lambda *_: "JobState=COMPLETING")
    submission = submitted(store)
    carried_out(submission, store, [until_asked], [done], [done])
    assert causes(store.run(RUNS[0])) == [""]
    if again:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        carried_out(submission, store, [done], [done], [done])
        assert causes(store.run(RUNS[0])) == ["preempted", "completed"]
    else:  # and is in nobody's books
        submission.accept("12")
        JobTracker(store, SubmissionLog(store), MadeScheduler(with_accounting=False)).look()
        assert causes(store.run(RUNS[0])) == ["cancelled"]


def test_a_job_that_a_person_cancels_knows_it(store: Store, scontrol: list[str]) -> None:
    submission = submitted(store)
    one = Supervisor(submission, 0, 0)
    one._workers = MadeWorkers(store, dict(zip(RUNS, ([until_asked], [done], [done]), strict=True)))  # type: ignore[assignment]
    submission.settle(0)
    assert one.work() == node.SOME_ARE_NOT
    assert causes(store.run(RUNS[0])) == ["cancelled"]
    assert scontrol == []
    assert node.main(submission.folder) == DONE, "should SLURM start it again"


def test_a_profile_may_forbid_to_queue_again(store: Store, scontrol: list[str]) -> None:
    carried_out(submitted(store, requeue=False), store, [until_asked], [done], [done])
    assert causes(store.run(RUNS[0])) == ["preempted"]
    assert f"requeue {JOB}" not in scontrol


def test_a_time_limit_too_short_for_any_progress_does_not_go_on_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def scontrol(*arguments: str) -> str:
        asked.append(arguments[0])
        return f"JobState=RUNNING PreemptTime=None EndTime={int(time.time()) + 100}"

    monkeypatch.setattr(node, "scontrol", scontrol)
    monkeypatch.setattr(job, "scontrol", scontrol)
    submission = submitted(store, retry={"attempts": 3})
    for restart in range(5):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        carried_out(submission, store, [until_asked], [done], [done])
    assert causes(store.run(RUNS[0])) == ["timed_out"] * 4, "one that made progress, and three that did not"
    assert [causes(store.run(run)) for run in RUNS[1:]] == [["completed"]] * 2, "then others have their turn"
    assert asked.count("requeue") == 4


def test_an_old_job_leaves_everything_to_the_new_one(store: Store, scontrol: list[str]) -> None:
    _, workers = carried_out(submitted(store), store, [superseded], [done], [done])
    assert workers.started == RUNS[:1]
    assert scontrol == []


def test_a_run_that_another_submission_has_is_left_alone(store: Store) -> None:
    old = submitted(store)
    submitted(store)
    status, workers = carried_out(old, store, [done], [done], [done])
    assert (status, workers.started) == (DONE, [])


def test_a_withdrawn_submission_starts_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    submission = submitted(store)
    submission.close("withdrawn")
    assert node.main(submission.folder) == DONE
    assert "withdrawn" in capsys.readouterr().err
    assert all(causes(store.run(run)) == [] for run in RUNS)


def test_what_is_done_is_not_done_again(store: Store) -> None:
    submission = submitted(store)
    complete(PLAN, store, RUNS[0])
    _, workers = carried_out(submission, store, [done], [done], [done])
    assert workers.started == RUNS[1:]


def test_a_student_does_not_start_without_its_teacher(store: Store) -> None:
    mined = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}
    plan = plan_of(ablation({"b": mined}, seeds=1))
    teacher, student = plan.runs
    submission = submitted(store, plan_of(ablation({"b": mined}, seeds=1)))
    intent = submission.intent.model_copy(update={"tasks": ((student,),)})
    one = Supervisor(Submission(submission.folder, intent), 0, 0)
    one._workers = MadeWorkers(store, {})  # type: ignore[assignment]
    assert one.work() == node.SOME_ARE_NOT
    (end,) = [attempt.end for attempt in store.run(student).attempts.all()]
    assert end is not None
    assert (end.cause, end.message) == ("no_teacher", f"its teacher, run {teacher}, is not trained")


def test_training_and_evaluation_are_jobs_of_their_own(store: Store) -> None:
    def trained(folder: RunFolder) -> int:
        assert json.loads(folder.request.read_text())["phase"] == "train"
        attempted(folder, JOB, "completed", step=300)
        train(folder)
        return 0

    training = submitted(store, phase="train")
    assert carried_out(training, store, [trained], [trained], [trained])[0] == DONE
    table = training.intent.model_dump() | {"id": "later", "phase": "evaluate", "training": training.intent.id}
    evaluation = SubmissionLog(store).add(Intent.model_validate(table))
    assert carried_out(evaluation, store, [done], [done], [done])[0] == DONE
    assert all(json.loads(store.run(run).request.read_text())["phase"] == "evaluate" for run in RUNS)


def test_its_share_of_the_budget_ends_it(store: Store, scontrol: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "ALLOWANCE_EVERY_S", 0.0)
    submission = submitted(store)
    intent = submission.intent.model_copy(update={"allowance_gpu_hours": 0.0})
    _, workers = carried_out(Submission(submission.folder, intent), store, [until_stopped], [done], [done])
    assert workers.started == RUNS[:1]
    assert causes(store.run(RUNS[0])) == ["interrupted"]
    assert scontrol == []


def test_a_store_that_the_node_cannot_see(tmp_path: Path) -> None:
    environment = {**os.environ, "SLURMD_NODENAME": "n7"}
    command = [sys.executable, "-m", "harness.execute.slurm.node", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == node.UNSEEN
    assert ended.stderr.startswith("harness: on n7: ")
    assert "nowhere/intent.json: cannot be read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_of_a_job_runs_the_snapshot(store: Store, tmp_path: Path) -> None:
    """A working folder with another `harness` in it, as a checkout is, must not be what a job imports."""
    submission = submitted(store)
    copy, checkout = tmp_path / "copy", tmp_path / "checkout"
    for root, word in ((copy, "the copy"), (checkout, "the checkout")):
        package = root / "harness" / "execute" / "slurm"
        package.mkdir(parents=True)
        for folder in (package.parents[1], package.parent, package):
            (folder / "__init__.py").touch()
        (package / "node.py").write_text(f"import sys\nprint({word!r}, sys.argv[1])\n")
    intent = Intent.model_validate(submission.intent.model_dump() | {"code": copy})
    command = batch_of(Submission(submission.folder, intent)).command
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ended = subprocess.run(command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True)
    assert ended.stdout == f"the copy {submission.folder.resolve()}\n"
