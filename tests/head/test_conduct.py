"""Conducting a plan: order, failures, retries, other processes, stopping; with made workers, then with real ones."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.base.errors import DispatchError, SpecError, StoreError
from harness.base.machine import cores
from harness.cli import run as running
from harness.execute.cancel import cancel
from harness.execute.executor import Progress
from harness.execute.life import MOST_STARTS
from harness.execute.local import executor as conduct
from harness.execute.local import processes as local
from harness.execute.local.executor import LocalExecutor
from harness.execute.local.inline import InlineWorkers
from harness.execute.local.processes import Ended, LocalWorkers, job_count
from harness.execute.run import stoppable, workers_of
from harness.planning.completeness import Completeness, Missing
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder, State
from harness.runs.planned import PlannedRun
from harness.runs.record import Cause, Failure
from harness.runs.request import evaluation_key, read_request
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.head.made import MINING, ablation, plan_of, record

MINED = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}
KILLED = -int(signal.SIGKILL)
REFUSED = 2
"""The worker found that another process works on the run."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "OTHERS_EVERY_S", 0.0)
    monkeypatch.setattr(conduct, "POLL_S", 0.02)


def finished(run: PlannedRun, *sets: str) -> Any:
    evaluation = run.experiment.evaluation
    return record(run, requests={name: evaluation_key(evaluation, name) for name in sets or evaluation.sets})


Script = Mapping[str, Sequence[Cause | int]]
"""How the attempts at a run end: the cause that the worker states, or its exit status when it dies without a word."""


class MadeWorkers:
    """Workers that end as `script` says (by run), one for each call of `ended`; without it, runs complete."""

    threads = 1

    def __init__(self, plan: Plan, store: Store, jobs: int, script: Script) -> None:
        self.jobs, self.closed, self.stopped = jobs, False, False
        self._plan, self._store = plan, store
        self._script = {run_id: list(outcomes) for run_id, outcomes in script.items()}
        self.started: list[str] = []
        self.alive: list[str] = []
        self.when_started: Callable[[], None] = lambda: None
        self._elsewhere = ExitStack()

    def start(self, folder: Path) -> None:
        assert folder.name not in self.alive
        assert (folder / "request.json").exists()
        self.started.append(folder.name)
        self.alive.append(folder.name)
        assert len(self.alive) <= self.jobs
        self.when_started()

    def ended(self, timeout_s: float) -> list[Ended]:
        self._elsewhere.close()
        if not self.alive:
            return []
        run_id = self.alive.pop(0)
        run, folder, script = self._plan.runs[run_id], self._store.run(run_id), self._script.get(run_id)
        outcome: Cause | int = script.pop(0) if script else "completed"
        if outcome == REFUSED:
            self._elsewhere.enter_context(folder.claimed())
        if isinstance(outcome, int):
            return [Ended(run_id, outcome)]
        if outcome == "completed":
            folder.finish(finished(run))
            return [Ended(run_id, 0)]
        folder.fail(Failure(cause=outcome, message=f"it was {outcome}", attempt=1, ended_at=1.0))
        folder.attempts.end(folder.attempts.begin(), outcome, f"it was {outcome}")
        return [Ended(run_id, 1)]

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def executor(
    plan: Plan, store: Store, jobs: int = 1, script: Script | None = None
) -> tuple[LocalExecutor, MadeWorkers]:
    workers = MadeWorkers(plan, store, jobs, script or {})
    return LocalExecutor(plan, store, Settings(store=store.root), workers), workers


def carried_out(one: LocalExecutor) -> Progress:
    snapshots = list(itertools.islice(one.run(), 1000))
    assert len(snapshots) < 1000, "it goes on for ever"
    return snapshots[-1]


def by_arm(plan: Plan) -> dict[str, str]:
    return {f"{arm}{seed}": run for (arm, seed), run in plan.cells.items()}


PLAN = plan_of(ablation({"a": {}, "b": MINED}, seeds=2))
RUNS = by_arm(PLAN)
(TEACHER,) = [run.id for run in PLAN.runs.values() if run.role == "teacher"]


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_every_run_once_and_teachers_before_their_students(store: Store, jobs: int) -> None:
    one, workers = executor(PLAN, store, jobs)
    last = carried_out(one)
    assert (last.done, last.total, last.failed, last.running) == (5, 5, {}, {})
    assert sorted(workers.started) == sorted(PLAN.runs)
    assert workers.closed
    for arm in ("b0", "b1"):
        assert workers.started.index(TEACHER) < workers.started.index(RUNS[arm])


def test_students_wait_for_the_end_of_their_teacher(store: Store) -> None:
    one, workers = executor(PLAN, store, 9)
    steps = one.run()
    next(steps)  # all that is ready was started, and one of them has ended
    begun = set(workers.started)
    assert begun == {TEACHER, RUNS["a0"], RUNS["a1"]}
    list(steps)


def test_what_is_done_is_not_done_again(store: Store) -> None:
    carried_out(executor(PLAN, store)[0])
    one, workers = executor(PLAN, store)
    assert one.progress().done == 5
    assert carried_out(one).done == 5
    assert workers.started == []


def test_a_run_that_lacks_an_evaluation_set_is_measured_again(store: Store) -> None:
    carried_out(executor(PLAN, store)[0])
    base = {"evaluation": {"sets": ["shapes", "digits"]}}
    wider = plan_of(ablation({"a": base, "b": MINED}, seeds=2))
    assert by_arm(wider) == RUNS
    one, workers = executor(wider, store)
    assert carried_out(one).done == 5
    assert sorted(workers.started) == sorted([RUNS["a0"], RUNS["a1"]])


@pytest.mark.parametrize("cause", ["user_error", "crashed", "out_of_memory"])
def test_a_failed_run_stops_no_other_and_is_not_tried_again(store: Store, cause: Cause) -> None:
    one, workers = executor(PLAN, store, script={RUNS["a0"]: [cause]})
    last = carried_out(one)
    assert (last.done, list(last.failed)) == (4, [RUNS["a0"]])
    assert last.failed[RUNS["a0"]].message == f"it was {cause}"
    assert len(workers.started) == 5


@pytest.mark.parametrize(("times", "sizes"), [(3, ["auto", 24, 12, 6]), (9, ["auto", 24, 12, 6, 3, 1])])
def test_out_of_gpu_memory_is_tried_again_with_a_smaller_micro_batch(
    store: Store, times: int, sizes: list[int | str]
) -> None:
    plan = plan_of(ablation({"a": {}}, seeds=1, experiment={"train": {"global_batch_size": 48}}))
    (run,) = plan.runs
    one, workers = executor(plan, store, script={run: ["out_of_memory_gpu"] * times})
    found = []
    workers.when_started = lambda: found.append(read_request(store.run(run)).experiment.resources.micro_batch_size)
    last = carried_out(one)
    assert found == sizes
    assert list(last.failed) == ([] if times == 3 else [run])


@pytest.mark.parametrize(("gpus", "processes", "given"), [(0, 1, [None] * 3), (2, 1, [0, 1, 0]), (4, 2, [0, 2, 0])])
def test_runs_at_a_time_have_gpus_of_their_own(
    store: Store, monkeypatch: pytest.MonkeyPatch, gpus: int, processes: int, given: list[int | None]
) -> None:
    """With more jobs than GPUs they share them in turn. A run of two processes has two GPUs."""
    monkeypatch.setattr(conduct, "gpu_count", lambda: gpus)
    plan = plan_of(ablation({"a": {}}, seeds=3, experiment={"resources": {"processes": processes}}))
    one, workers = executor(plan, store, jobs=3)
    next(one.run())
    assert [read_request(store.run(run)).gpu for run in workers.started] == given


def test_students_of_a_failed_teacher_are_given_up_with_the_reason(store: Store) -> None:
    one, workers = executor(PLAN, store, script={TEACHER: ["user_error"]})
    last = carried_out(one)
    assert (last.done, set(last.failed)) == (2, {TEACHER, RUNS["b0"], RUNS["b1"]})
    assert last.failed[RUNS["b0"]].message == f"its teacher, run {TEACHER}, failed: it was user_error"
    assert not {RUNS["b0"], RUNS["b1"]} & set(workers.started)
    again, workers = executor(PLAN, store)  # the mistake was mended
    assert carried_out(again).done == 5
    assert sorted(workers.started) == sorted([TEACHER, RUNS["b0"], RUNS["b1"]])


def test_a_killed_worker_is_started_again(store: Store) -> None:
    one, workers = executor(PLAN, store, script={RUNS["a0"]: [KILLED, 1]})
    assert carried_out(one).done == 5
    assert workers.started.count(RUNS["a0"]) == 3


def test_a_worker_that_is_killed_again_and_again_is_given_up(store: Store) -> None:
    one, workers = executor(PLAN, store, script={RUNS["a0"]: [KILLED] * 9})
    last = carried_out(one)
    assert workers.started.count(RUNS["a0"]) == conduct.MAX_CRASHES == 3
    log = store.run(RUNS["a0"]).log
    assert last.failed[RUNS["a0"]].message == f"its process died 3 times, last by signal 9; see {log}"
    assert last.done == 4


def test_an_old_failure_is_not_taken_for_that_of_a_worker_that_was_killed(store: Store) -> None:
    folder = store.run(RUNS["a0"])
    folder.fail(Failure(cause="user_error", message="mended since", attempt=1, ended_at=1.0))
    one, workers = executor(PLAN, store, script={RUNS["a0"]: [KILLED]})
    assert carried_out(one).done == 5
    assert workers.started.count(RUNS["a0"]) == 2


def test_a_run_that_somebody_interrupted_is_started_again(store: Store) -> None:
    one, workers = executor(PLAN, store, script={RUNS["a0"]: ["interrupted"] * 5})
    assert carried_out(one).done == 5
    assert workers.started.count(RUNS["a0"]) == 6


def test_after_a_request_to_stop_nothing_is_started(store: Store) -> None:
    one, workers = executor(PLAN, store, jobs=2, script=dict.fromkeys(PLAN.runs, ("interrupted", KILLED)))
    steps = one.run()
    next(steps)
    one.stop()
    begun = list(workers.started)
    *_, last = steps
    assert workers.stopped
    assert workers.started == begun
    assert (last.done, last.failed) == (0, {})
    assert carried_out(executor(PLAN, store)[0]).done == 5


def test_a_run_that_another_process_works_on_is_waited_for(store: Store) -> None:
    folder = store.run(RUNS["a0"])
    folder.prepare(PLAN.runs[folder.id].identity, {})
    one, workers = executor(PLAN, store, jobs=9)
    steps = one.run()
    with folder.claimed():
        progress = [next(steps) for _ in range(20)][-1]
        assert RUNS["a0"] not in workers.started
        assert (progress.done, progress.elsewhere) == (4, (RUNS["a0"],))
        folder.finish(finished(PLAN.runs[folder.id]))
    *_, last = steps
    assert (last.done, last.elsewhere) == (5, ())
    assert RUNS["a0"] not in workers.started


def test_a_run_that_another_process_leaves_unfinished_is_taken_over(store: Store) -> None:
    folder = store.run(TEACHER)
    folder.prepare(PLAN.runs[folder.id].identity, {})
    one, workers = executor(PLAN, store, jobs=9)
    steps = one.run()
    with folder.claimed():
        for _ in range(20):
            next(steps)
        assert sorted(workers.started) == sorted([RUNS["a0"], RUNS["a1"]])
    assert carried_out(one).done == 5


def test_a_worker_that_another_process_forestalled_has_not_crashed(store: Store) -> None:
    """Both start the run, one claims it: the other's worker is refused, however often, and the run goes on."""
    one, workers = executor(PLAN, store, script={RUNS["a0"]: [REFUSED] * 5})
    last = carried_out(one)
    assert (last.done, last.failed) == (5, {})
    assert workers.started.count(RUNS["a0"]) == 6


def test_a_request_to_stop_between_two_starts_comes_before_the_second(store: Store) -> None:
    one, workers = executor(PLAN, store, jobs=3)
    workers.when_started = one.stop
    assert carried_out(one).done == 1
    assert len(workers.started) == 1


def test_a_changed_default_is_told_and_stops_no_other_run(store: Store) -> None:
    carried_out(executor(PLAN, store)[0])
    folder = store.run(RUNS["a1"])
    folder.spec.write_text(folder.spec.read_text().replace('"beta2": 0.98', '"beta2": 0.95'))
    one, workers = executor(PLAN, store)
    last = carried_out(one)
    assert last.done == last.total - 1
    assert "train.optimiser.beta2 0.95 -> 0.98" in last.failed[RUNS["a1"]].message
    assert workers.started == []


def test_a_full_disk_is_named_at_once(store: Store) -> None:
    run = RUNS["a0"]
    one, workers = executor(PLAN, store, script={run: [74]})
    progress = carried_out(one)
    assert workers.started.count(run) == 1
    assert "the disk of the store is full" in progress.failed[run].message


def test_a_store_that_cannot_be_written_ends_it(store: Store) -> None:
    store.root.mkdir()
    (store.root / "runs").write_text("in the way")
    one, workers = executor(PLAN, store)
    with pytest.raises(StoreError, match="cannot be written"):
        carried_out(one)
    assert workers.closed
    assert workers.started == []


def test_a_run_that_is_interrupted_for_ever_is_given_up(store: Store) -> None:
    """The last brake, as for jobs: something keeps stopping its process, and it gets no further."""
    plan = plan_of(ablation({"a": {}}, seeds=1))
    (run,) = plan.runs
    one, workers = executor(plan, store, script={run: ["interrupted"] * 50})
    last = carried_out(one)
    assert len(workers.started) == MOST_STARTS
    assert "started 10 times without progress, still missing trained weights" in last.failed[run].message


def test_a_plan_of_thousands_is_not_looked_at_all_the_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand runs looked at four times a second would take a core from training."""
    monkeypatch.setattr(conduct, "OTHERS_EVERY_S", 1000.0)
    looks: list[str] = []
    locked, left = RunFolder.is_locked, Completeness.missing

    def is_locked(folder: RunFolder) -> bool:
        looks.append(folder.id)
        return locked(folder)

    def missing(one: Completeness, run: PlannedRun) -> Missing:
        looks.append(run.id)
        return left(one, run)

    monkeypatch.setattr(RunFolder, "is_locked", is_locked)
    monkeypatch.setattr(Completeness, "missing", missing)
    axes = {"train.optimiser.lr": [number / 1000 for number in range(1, 101)]}
    plan = plan_of(ablation(axes=axes, baseline="train.optimiser.lr=0.001", seeds=1))
    carried_out(executor(plan, store)[0])
    assert len(looks) <= 8 * len(plan.runs)


def test_remaining_time(store: Store) -> None:
    progress = Progress(1, 5, {"x": {"step": 10, "elapsed_s": 5.0}, "y": {"step": 20, "elapsed_s": 10.0}, "z": {}})
    total = sum(run.steps for run in PLAN.runs.values())
    assert running.remaining_s(PLAN, progress) == pytest.approx((total / 5 * 4 - 30) / 4)
    assert running.remaining_s(PLAN, Progress(1, 5, {"x": {}})) is None
    assert running.summary(PLAN, Progress(1, 5, {RUNS["b1"]: {"step": 3, "steps": 300}}, {}, ("x",))) == (
        "1 of 5 runs; b/1 3/300; 1 running in another process"
    )


def test_profiles_and_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(store=tmp_path, jobs=3)
    assert (job_count(settings, None), job_count(settings, 5)) == (3, 5)
    assert job_count(Settings(store=tmp_path), None) == min(cores(), 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    alone = Settings(store=tmp_path)
    assert [job_count(alone, None, processes) for processes in (1, 2, 3, 8)] == [4, 2, 1, 1]
    assert workers_of("local", None, alone, processes=2).jobs == 2
    assert isinstance(workers_of("inline", None, settings), InlineWorkers)
    many = workers_of("local", 1000, settings)
    assert (many.jobs, many.threads) == (1000, 1)
    with pytest.raises(SpecError, match="there is no profile 'slrum'; known: local, inline"):
        workers_of("slrum", None, settings)


# Real processes: the fork server, around a worker that does what its run folder says (see tests/head/fork_server.py).

Ready = Callable[..., tuple[LocalExecutor, LocalWorkers]]


@pytest.fixture
def processes(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ready]:
    monkeypatch.setattr(local, "FORK_SERVER", (sys.executable, "-m", "tests.head.fork_server"))
    monkeypatch.setattr(conduct, "POLL_S", 0.05)
    made: list[LocalWorkers] = []

    def ready(plan: Plan, jobs: int = 2, **actions: str) -> tuple[LocalExecutor, LocalWorkers]:
        told(plan, store, actions)
        made.append(LocalWorkers(jobs, 1))
        return LocalExecutor(plan, store, Settings(store=store.root), made[-1]), made[-1]

    yield ready
    for workers in made:
        workers.stop()
        workers.close()
        if workers._fork_server is not None:
            workers._fork_server._process.wait(timeout=60)


def told(plan: Plan, store: Store, actions: dict[str, str]) -> None:
    for name, run_id in by_arm(plan).items():
        folder = store.run(run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / "made.json").write_text(finished(plan.runs[run_id]).model_dump_json())
        (folder.path / "do").write_text(actions.get(name, "finish"))


def attempts(folder: RunFolder) -> list[str]:
    file = folder.path / "tries"
    return file.read_text().splitlines() if file.exists() else []


def until(what: Callable[[], object], steps: Iterator[Progress] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
        if steps is not None:
            next(steps)


SEVERAL = plan_of(ablation({"a": {}, "b": {"captions": {"count": 1}}, "c": {"captions": {"count": 2}}}, seeds=1))


def test_processes_of_one_fork_server(store: Store, processes: Ready) -> None:
    one, workers = processes(SEVERAL, jobs=2, b0="die")
    *_, last = one.run()
    assert (last.done, last.failed) == (3, {})
    for name, run_id in by_arm(SEVERAL).items():
        folder = store.run(run_id)
        assert len(attempts(folder)) == (2 if name == "b0" else 1)
        assert {line.split()[1] for line in attempts(folder)} == {str(workers.threads)}
        assert folder.log.read_text() == "at work\n" * len(attempts(folder))


def test_processes_that_die_again_and_again(store: Store, processes: Ready) -> None:
    one, _ = processes(SEVERAL, a0="die always")
    *_, last = one.run()
    assert last.done == 2
    (failure,) = last.failed.values()
    assert failure.message.startswith("its process died 3 times, last by signal 9; see ")


def at_work(folder: RunFolder) -> bool:
    """Whether the made worker has said so, which it does once it minds signals."""
    return folder.log.exists() and "at work" in folder.log.read_text()


def test_stopping_processes(store: Store, processes: Ready) -> None:
    one, _ = processes(SEVERAL, jobs=2, a0="wait", b0="wait", c0="wait")
    steps = one.run()
    folders = {name: store.run(run_id) for name, run_id in by_arm(SEVERAL).items()}
    until(lambda: all(at_work(folders[name]) for name in ("a0", "b0")), steps)
    one.stop()
    *_, last = steps
    assert (last.done, last.failed, last.running) == (0, {}, {})
    states = [folders[name].state() for name in ("a0", "b0", "c0")]
    assert states == [State.INTERRUPTED, State.INTERRUPTED, State.MISSING]


def test_stopping_a_process_that_is_only_about_to_start(store: Store, processes: Ready) -> None:
    """The request comes before the fork server has imported anything; it must not take the whole run to come true."""
    one, _ = processes(SEVERAL, jobs=1, a0="wait", b0="wait", c0="wait")
    steps = one.run()
    next(steps)
    one.stop()
    begun = time.monotonic()
    *_, last = steps
    assert last.done == 0
    assert time.monotonic() - begun < 50
    assert [store.run(run_id).is_locked() for run_id in SEVERAL.runs] == [False] * 3


def test_workers_outlive_a_killed_fork_server_and_are_not_doubled(store: Store, processes: Ready) -> None:
    one, workers = processes(SEVERAL, jobs=1, a0="finish after", b0="finish", c0="finish")
    steps = one.run()
    until(lambda: store.run(by_arm(SEVERAL)["a0"]).is_locked(), steps)
    assert workers._fork_server is not None
    workers._fork_server._process.kill()
    *_, last = steps
    assert (last.done, last.failed) == (3, {})
    assert [len(attempts(store.run(run_id))) for run_id in SEVERAL.runs] == [1, 1, 1]


def test_a_fork_server_that_cannot_start(store: Store, processes: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FORK_SERVER", (sys.executable, "-c", "raise SystemExit(3)"))
    one, _ = processes(SEVERAL)
    expected = r"the worker processes cannot be started \(exit status 3, see above\); try `--on inline`, or"
    with pytest.raises(DispatchError, match=expected):
        list(one.run())


def test_a_run_in_this_process_passes_ctrl_c_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, the run has the signal's handler; whoever conducts it has to learn of it all the same."""
    fake = types.ModuleType("harness.worker")
    begun: list[str] = []

    def work(folder: Path, environment: object) -> int:
        begun.append(folder.name)
        RunFolder(folder).fail(Failure(cause="interrupted", message="stopped on request", attempt=1, ended_at=1.0))
        return 75

    fake.main, fake.STOPPED = work, 75  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harness.worker", fake)
    monkeypatch.setattr(harness, "worker", fake, raising=False)
    one = LocalExecutor(SEVERAL, store, Settings(store=store.root), InlineWorkers(1))
    with running.clean_stop(running.STOPPING) as stop:
        *_, last = stoppable(one.run(), one.stop, stop)
    assert (len(begun), last.done, last.failed) == (1, 0, {})


COMMAND = """
import sys
from pathlib import Path
from harness.cli import run as running
from harness.execute import run as engine
from harness.execute.local import processes as local
from tests.head import test_conduct
local.FORK_SERVER = (sys.executable, "-m", "tests.head.fork_server")
project = test_conduct.small_project(Path(sys.argv[1]))
plan = test_conduct.small_plan(project)
with running.clean_stop(running.STOPPING) as stop:
    running.say_end(engine.run(plan, project, "local", jobs=2, stop=stop))
"""
SMALL_DATA = {"kind": "shapes", "train_samples": 128, "test_samples": 36}


def small_project(root: Path) -> Project:
    settings = Settings(store=root / "store", tracking_uri="none")
    return Project(settings, Store(settings.store))


def small_plan(project: Project) -> Plan:
    arms = {"a": {"data": SMALL_DATA}, "b": {"data": SMALL_DATA, "captions": {"count": 1}}}
    return project.plan(ablation(arms, seeds=1))


def begun_command(tmp_path: Path, **actions: str) -> tuple[subprocess.Popen[str], Project, Plan]:
    project = small_project(tmp_path)
    plan = small_plan(project)
    told(plan, project.store, actions)
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True), project, plan


def test_cancel_stops_the_command_and_its_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, project, plan = begun_command(tmp_path, a0="wait", b0="wait")
    folders = [project.store.run(run_id) for run_id in plan.runs]
    until(lambda: all(folder.holder() for folder in folders))
    assert [found.pid for found in project.store.running_commands(plan.command)] == [command.pid]
    running.say_cancelled(cancel(plan, project.store))
    assert capsys.readouterr().out == "asked 2 running runs to stop; they write a checkpoint first\n"
    _, said = command.communicate(timeout=60)
    assert "stopped; repeat the command to resume from the checkpoints" in said
    assert "Traceback" not in said
    assert [folder.state() for folder in folders] == [State.INTERRUPTED] * 2
    assert [len(attempts(folder)) for folder in folders] == [1, 1]
    running.say_cancelled(cancel(plan, project.store))
    assert capsys.readouterr().out == "none of its runs is running\n"


def test_workers_outlive_a_killed_command_and_are_waited_for_or_cancelled(
    tmp_path: Path, processes: Ready, capsys: pytest.CaptureFixture[str]
) -> None:
    command, project, plan = begun_command(tmp_path, a0="finish after", b0="wait")
    first, second = (project.store.run(run_id) for run_id in plan.runs)
    until(lambda: first.holder() and second.holder())
    command.kill()
    command.wait()
    assert command.stderr is not None
    command.stderr.close()  # not read to its end: the workers have it too
    assert project.store.running_commands(plan.command) == []
    steps = LocalExecutor(plan, project.store, project.settings, LocalWorkers(2, 1)).run()
    until(lambda: first.state() is State.DONE, steps)
    assert [len(attempts(folder)) for folder in (first, second)] == [1, 1]
    running.say_cancelled(cancel(plan, project.store))
    assert "asked 1 running runs to stop" in capsys.readouterr().out
    until(lambda: not second.is_locked())
    assert second.state() is State.INTERRUPTED


def test_cancel_of_what_runs_on_another_machine_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store.run(RUNS["a0"])
    folder.prepare(PLAN.runs[folder.id].identity, {})
    with folder.claimed():
        folder.lock.write_text(f"{os.getpid()} elsewhere\n")
        running.say_cancelled(cancel(PLAN, store))
    assert capsys.readouterr().err == f"process {os.getpid()} is running on elsewhere: cancel it there\n"
