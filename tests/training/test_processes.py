"""Several processes that share a run's batches: started by the worker, by torchrun's or by SLURM's variables."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event

import pytest
import torch

from harness import worker
from harness.base.errors import DispatchError
from harness.base.files import read_json, write_json
from harness.base.machine import cores, without_ranks
from harness.execute.local.inline import InlineWorkers
from harness.execute.local.processes import LocalWorkers, thread_count
from harness.node.attempt import AttemptRunner, load_request
from harness.parallel.process_group import ProcessRank, process_rank
from harness.runs.folder import RunFolder, State
from harness.runs.settings import Settings
from tests.evaluation.worlds import classification_files, classification_members, write_set
from tests.node.small import TIMINGS, experiment, planned, prepared
from tests.training.made import VIT_MODEL, train

STEPS = 6
TIMEOUT_S = 600
SEVERAL_BATCHES = {"kind": "shapes", "train_samples": 96, "test_samples": 600}
"""An evaluation set of three batches."""


def ready(root: Path, **changes: object) -> RunFolder:
    fields: dict[str, object] = {"model": VIT_MODEL, "train": train(STEPS), "resources": {"log_every": 1}}
    one = experiment(**fields | changes)
    return prepared(root, planned(root, one)[1])


def started(folder: RunFolder, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.worker", str(folder.path)]
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **own})


def user_error(folder: RunFolder) -> str:
    """The sentence in which a run ends by a mistake of the user's."""
    process = started(folder)
    said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == worker.USER_ERROR
    assert folder.failure().cause == "user_error"
    assert "Traceback" not in said
    return folder.failure().message


def metrics(folder: RunFolder) -> list[dict[str, float]]:
    return [{k: v for k, v in line.values.items() if k not in TIMINGS} for line in folder.step_metrics()]


@pytest.mark.slow
def test_a_run_of_two_processes_equals_one(tmp_path: Path) -> None:
    alone = ready(tmp_path / "alone")
    assert worker.main(alone.path) == worker.DONE

    two = ready(tmp_path / "two", resources={"processes": 2, "log_every": 1})
    assert two.id == alone.id
    process = started(two)
    assert process.wait(TIMEOUT_S) == worker.DONE
    record = two.record()
    assert (record.cost.devices, record.cost.micro_batch_size, record.steps) == (2, 8, STEPS)
    assert len(metrics(two)) == len(metrics(alone)) == STEPS
    for ours, theirs in zip(metrics(two)[:2], metrics(alone)[:2], strict=True):  # before float32's rounding has grown
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert list(two.path.glob("rendezvous-*")) == []


@pytest.mark.slow
def test_a_request_to_stop_reaches_all(tmp_path: Path) -> None:
    folder = ready(tmp_path, resources={"processes": 2}, train=train(100_000))
    process = started(folder)
    until = time.monotonic() + TIMEOUT_S
    while folder.read_progress().get("step", 0) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == worker.STOPPED
    assert folder.state() is State.INTERRUPTED
    state = torch.load(folder.checkpoint, weights_only=True)
    assert state["progress"]["step"] == folder.read_progress()["step"]


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, "1 steps"])  # most of the time is spent on evaluation then
def test_when_one_dies_the_others_end_and_the_run_goes_on_later(every: str | None, tmp_path: Path) -> None:
    resources = {"processes": 2, "checkpoint_every_steps": 2}
    evaluation = {"sets": ("shapes",), "every": every}
    folder = ready(tmp_path, resources=resources, train=train(100_000), evaluation=evaluation, data=SEVERAL_BATCHES)
    process = started(folder)
    until = time.monotonic() + TIMEOUT_S
    while not folder.checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert process.wait(TIMEOUT_S) == worker.BROKEN
    assert folder.failure().cause == "crashed"
    assert not folder.is_locked()
    assert folder.checkpoint.exists()


def as_asked(folder: RunFolder, **request: object) -> RunFolder:
    """The run with another way of carrying it out."""
    write_json(folder.request, read_json(folder.request) | request)
    return folder


@pytest.mark.slow
def test_processes_evaluate_together_and_training_does_not_notice(tmp_path: Path) -> None:
    recipe = train(STEPS, ema_decay=0.9)
    resources = {"processes": 2, "log_every": 1, "checkpoint_every_steps": 2, "keep_checkpoints": 9}
    every = {"sets": ("shapes", "shapes_retrieval"), "every": "2 steps"}
    changes = {"train": recipe, "data": SEVERAL_BATCHES, "resources": resources}
    curve = as_asked(ready(tmp_path / "curve", evaluation=every, **changes), phase="train")
    assert started(curve).wait(TIMEOUT_S) == worker.DONE
    plain = ready(tmp_path / "plain", evaluation={"sets": ("shapes",)}, **changes)
    assert started(plain).wait(TIMEOUT_S) == worker.DONE

    lines = metrics(curve)
    measured = {step: lines[step - 1] for step in (2, 4)}
    assert [{k: v for k, v in line.items() if not k.startswith("shapes")} for line in lines] == metrics(plain)
    ours, theirs = (torch.load(one.weights, weights_only=True)["state_dict"] for one in (curve, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    # What both measured along the way is what one process measures on the weights of that step.
    alone = AttemptRunner(as_asked(curve, processes=1, phase="run"), load_request(curve), 2, Event())
    for step, line in measured.items():
        state = torch.load(curve.path / f"checkpoint-{step:09d}.pt", weights_only=True)
        alone.towers.model.load_state_dict(state["average"])
        found = {
            f"{one.set}/{name}": metric.value
            for one in alone.evaluation.curve()
            for name, metric in one.metrics.items()
        }
        assert found == {name: line[name] for name in found}
        assert {"shapes/acc1", "shapes_retrieval/image_retrieval_recall@5"} <= found.keys()

    assert worker.main(curve.path) == worker.DONE  # one process evaluates what two have trained
    assert curve.record().cost.devices == 2
    as_asked(plain, experiment=read_json(curve.request)["experiment"])
    assert started(plain).wait(TIMEOUT_S) == worker.DONE  # and two add a set to a finished run
    assert plain.record().evaluations == curve.record().evaluations
    assert len(plain.record().evaluations) == 2


@pytest.mark.slow
def test_an_image_that_one_process_cannot_decode_is_told_by_all(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    members = [*classification_members([0, 1]), ("s2.png", b"no image"), ("s2.cls", b"0")]
    write_set(spoilt, [members], classification_files(2))
    evaluation = {"sets": (str(spoilt),), "every": "2 steps"}
    folder = ready(tmp_path, resources={"processes": 2}, evaluation=evaluation)
    assert 'the image of sample "s2" cannot be decoded' in user_error(folder)


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    folder = ready(tmp_path)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness.worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run([sys.executable, "-m", *command, str(folder.path)], env=environment, timeout=TIMEOUT_S)
    assert ended.returncode == 0
    assert folder.record().cost.devices == 2


@pytest.mark.slow
def test_what_one_process_cannot_do_is_said_once(tmp_path: Path) -> None:
    folder = ready(tmp_path, resources={"processes": 3})
    assert "3 processes cannot share a batch of 16; use 2 processes" in user_error(folder)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("processes", "environment", "expected"),
    [
        (1, {}, ProcessRank(size=1, rendezvous=f"pid{os.getpid()}")),
        (4, {}, ProcessRank(size=4, starts=4, rendezvous=f"pid{os.getpid()}")),
        (1, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, ProcessRank(3, 4, 1, 2)),
        (
            1,
            SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            ProcessRank(1, 2, 1, rendezvous="slurm7.0.0"),
        ),
        (
            8,
            SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            ProcessRank(4, 8, starts=4, rendezvous="slurm7.0.0"),
        ),
        (
            4,
            SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            ProcessRank(size=4, starts=4, rendezvous=f"pid{os.getpid()}"),
        ),
    ],
)
def test_who_a_process_is(processes: int, environment: Mapping[str, str], expected: ProcessRank) -> None:
    assert process_rank(processes, environment) == expected


OUTER = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0",
    "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "0", "TORCHELASTIC_RUN_ID": "x",
}  # fmt: skip
"""An outer torchrun, srun and mpirun at once."""


def test_an_outer_shell_says_nothing_of_the_processes_that_we_start() -> None:
    kept = {
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_CONF": "/c",
        "CUDA_VISIBLE_DEVICES": "0",
        "PATH": "/",
    }
    assert without_ranks(OUTER | kept) == kept
    assert process_rank(1, without_ranks(OUTER)).size == 1


@pytest.mark.parametrize("inline", [True, False])
def test_workers_train_alone_in_an_outer_shell(tmp_path: Path, inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OUTER.items():
        monkeypatch.setenv(name, value)
    folder = ready(tmp_path, train=train(2))
    workers = InlineWorkers(1) if inline else LocalWorkers(1, 1)
    workers.start(folder.path)
    until = time.monotonic() + TIMEOUT_S
    while not (ended := workers.ended(0.1)) and time.monotonic() < until:
        pass
    workers.close()
    assert [one.status for one in ended] == [worker.DONE]
    assert folder.record().cost.devices == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stop_ends_the_wait_for_processes_that_never_come(tmp_path: Path, rank: str) -> None:
    folder = ready(tmp_path)
    code = "import sys, harness.worker as w; print(1, flush=True); w.leave(w.main(w.Path(sys.argv[1])))"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # one of its own: the cases run at the same time
    addressed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": rank, "WORLD_SIZE": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | addressed,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"  # its imports are done
    time.sleep(3.0)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == worker.STOPPED, said
    assert "stopped on request, while waiting for the other processes" in said


@pytest.mark.parametrize(("waits", "handled"), [(True, ""), (False, "handlers ran\n")])
def test_python_is_not_unwound_below_a_thread_that_still_waits(waits: bool, handled: str) -> None:
    # Where that thread woke up inside torch's C++ code meanwhile, the process aborted in place of its exit status.
    code = f"""
import atexit, threading
from harness.parallel.process_group import StoppedWaitingError, _interruptible, leave
atexit.register(print, "handlers ran")
never, stop = threading.Event(), threading.Event()
stop.set()
try:
    _interruptible(never.wait if {waits} else int, stop)
except StoppedWaitingError:
    print("stopped")
leave(75)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 75, ended.stderr
    assert ended.stdout == ("stopped\n" if waits else "") + handled


@pytest.mark.parametrize(
    ("variable", "stated", "jobs", "expected"),
    [("", 0, 1, cores()), ("3", 0, 1, 3), ("3,2", 0, 4, 3), ("3", 5, 1, 5), ("x", 0, 10_000, 1), ("", 2, 7, 2)],
)
def test_the_threads_are_those_that_the_user_states(
    tmp_path: Path, variable: str, stated: int, jobs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert thread_count(Settings(store=tmp_path, threads=stated), jobs) == expected


def test_tasks_that_cannot_make_up_the_processes() -> None:
    environment = SLURM | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}
    with pytest.raises(DispatchError, match="3 SLURM tasks cannot start 4 processes"):
        process_rank(4, environment)
