"""What SLURM's commands print, as they printed it on a real cluster, and what is asked of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import DispatchError
from harness.config.profile import JobResources, Profile
from harness.execute.slurm import client as slurm
from harness.execute.slurm.client import Slurm, expand
from harness.execute.slurm.sbatch import parameters
from harness.execute.slurm.scheduler import ArrayRequest, HeldBackError, RefusedError, UnreachableError, UnsureError

CONFIG = """Configuration data as of 2026-11-24T19:30:00
AccountingStorageType   = accounting_storage/slurmdbd
MaxArraySize            = 1001
MaxJobCount             = 10000
"""
QUEUE = """12_[0-2,7%4]|PENDING||Priority|N/A|N/A|abl.1
13_0|RUNNING|n1|None|1795548649|1795549249|abl.2
13_1|NODE_FAIL|n2|NodeFail|1795548649|1795548700|abl.2
14|COMPLETING|n1|None|1795548649|N/A|other
15_3|REQUEUED||BeginTime|N/A|N/A|abl.3
"""
ACCOUNTED = """6_0|REQUEUED|n1|0:0|1795548621|1795548649||3G|abl
6_0.batch|CANCELLED|n1|0:15|1795548621|1795548649|3000K||batch
6_0|NODE_FAIL|n2|0:0|1795548655|1795548710||3G|abl
6_0|FAILED|n1|9:0|1795548716|1795548758||3G|abl
6_0.batch|FAILED|n1|9:0|1795548716|1795548758|9000K||batch
6_0.0|CANCELLED by 0|n1|0:9|1795548717|1795548758|2900000K||python
6_1|RUNNING|n1|0:0|1795548716|Unknown||3G|abl
12_[0-1%2]|CANCELLED by 0|None assigned|0:0|None|1795548758||3G|abl
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of made commands that comes first; each writes its arguments down and prints what `say` told it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol", "sinfo", "sacctmgr"):
        say(folder, name, CONFIG if name == "scontrol" else "")
    return folder


def say(folder: Path, name: str, out: str = "", *, err: str = "", status: int = 0) -> None:
    (folder / f"{name}.out").write_text(out)
    (folder / f"{name}.err").write_text(err)
    file = folder / name
    where = folder / name
    file.write_text(
        f'#!/bin/sh\necho "$@" >> {where}.asked\necho "$SLURM_JOB_ID" >> {where}.job\n'
        f"cat {where}.out\ncat {where}.err >&2\nexit {status}\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def asked(folder: Path, name: str) -> list[str]:
    file = folder / f"{name}.asked"
    return file.read_text().splitlines() if file.exists() else []


def batch(folder: Path, **more: Any) -> ArrayRequest:
    profile = Profile(gpus_per_task=1, mem_gb=8)
    base: dict[str, Any] = {"name": "abl.1", "folder": folder / "sub", "command": "run me", "tasks": 3}
    return ArrayRequest(**base | {"resources": JobResources(gpus_per_task=1), "profile": profile} | more)


def test_array_ranges() -> None:
    assert list(expand("123")) == ["123"]
    assert list(expand("123_4")) == ["123_4"]
    assert list(expand("123_[0-2,7%4]")) == ["123_0", "123_1", "123_2", "123_7"]
    assert list(expand("123_[0-6:3]")) == ["123_0", "123_3", "123_6"]


def test_the_queue(commands: Path) -> None:
    say(commands, "squeue", QUEUE)
    jobs = {job.id: job for job in Slurm().queue()}
    assert {one: job.phase for one, job in jobs.items()} == {
        **dict.fromkeys(("12_0", "12_1", "12_2", "12_7", "15_3"), "pending"),
        **dict.fromkeys(("13_0", "14"), "running"),
        "13_1": "ended",
    }
    assert (jobs["13_0"].node, jobs["13_0"].started_at, jobs["13_0"].ended_at) == ("n1", 1795548649.0, None)
    assert (jobs["13_1"].state, jobs["13_1"].ended_at) == ("NODE_FAIL", 1795548700.0)
    assert len(asked(commands, "squeue")) == 1


def test_the_history_of_restarts_and_their_memory(commands: Path) -> None:
    say(commands, "sacct", ACCOUNTED)
    jobs = Slurm().history({"6", "12"})
    assert [(job.id, job.state) for job in jobs] == [
        ("6_0", "REQUEUED"),
        ("6_0", "NODE_FAIL"),
        ("6_0", "FAILED"),
        ("12_0", "CANCELLED"),
        ("12_1", "CANCELLED"),
    ]
    assert [round(job.memory_share, 2) for job in jobs] == [0.0, 0.0, 0.92, 0.0, 0.0]
    assert "--jobs=12,6" in asked(commands, "sacct")[0]


def test_without_accounting_nothing_is_asked_of_it(commands: Path) -> None:
    say(commands, "scontrol", CONFIG.replace("slurmdbd", "none"))
    one = Slurm()
    assert one.limits().accounting is False
    assert one.history({"6"}) == []
    assert one.find(["abl.1"]) == {}
    assert (asked(commands, "sacct"), len(asked(commands, "squeue"))) == ([], 1)


@pytest.mark.parametrize("name", ["lr=1e-3|bs=256", "a|b|c|d|e|f|g", "|", " ", "a\nb", "a\n|||||||", "ünïcode %j"])
def test_a_job_of_a_stranger_may_have_any_name(commands: Path, name: str) -> None:
    say(commands, "squeue", f"{QUEUE}99|RUNNING|n1|None|1795548649|1795549249|{name}\n")
    found = {job.id: job.name for job in Slurm().queue()}
    assert found["13_0"] == "abl.2"
    assert found["99"] == name.partition("\n")[0]
    say(commands, "sacct", f"{ACCOUNTED}98|FAILED|n1|1:0|1795548716|1795548758||3G|{name}\n")
    assert ("98", name.partition("\n")[0]) in [(job.id, job.name) for job in Slurm().history({"6"})]
    say(commands, "squeue", f"97|{name}\n12_[0-9]|abl.1\n")
    assert Slurm().find(["abl.1"])["abl.1"] == "12"


def test_finding_by_name(commands: Path) -> None:
    say(commands, "squeue", "12_[0-9]|abl.1\n")
    say(commands, "sacct", "13_0|abl.2\n13_1|abl.2\n")
    assert Slurm().find(["abl.1", "abl.2", "abl.3"]) == {"abl.1": "12", "abl.2": "13"}


def test_limits_and_partitions(commands: Path) -> None:
    one = Slurm()
    assert one.limits().max_array == 1001
    one.limits()
    assert len(asked(commands, "scontrol")) == 1
    say(
        commands,
        "sinfo",
        "gpu|4|16|64000|gpu:a100:4(S:0-1)|1-00:00:00\ngpu|2|64+|128000|gpu:8,shard:2|30:00\ncpu|2|8|1|(null)|infinite\n",
    )
    gpu, cpu = one.partitions()
    assert (gpu.nodes, gpu.cpus, gpu.mem_gb, gpu.gpus, gpu.time_limit_min) == (6, 64, 125.0, 8, 1440.0)
    assert (cpu.gpus, cpu.time_limit_min) == (0, float("inf"))


@pytest.mark.parametrize("name", ["squeue", "sacct", "scancel", "sinfo"])
def test_a_command_that_fails_is_no_answer(commands: Path, name: str) -> None:
    say(commands, name, err="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    calls: dict[str, Callable[[], object]] = {
        "squeue": lambda: Slurm().queue(),
        "sacct": lambda: Slurm().history({"1"}),
        "scancel": lambda: Slurm().cancel(["1"]),
        "sinfo": lambda: Slurm().partitions(),
    }
    with pytest.raises(UnreachableError, match=f"{name} fails .*Unable to contact slurm controller"):
        calls[name]()


def test_a_command_that_hangs_is_no_answer(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "QUERY_TIMEOUT_S", 0.3)
    (commands / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(UnreachableError, match="squeue does not answer"):
        Slurm().queue()


ERRORS = [
    ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
     "accounting/QOS policy (job submit limit, user's size and/or time limits)", HeldBackError),
    ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", HeldBackError),
    ("sbatch: error: Batch job submission failed: Invalid qos specification", RefusedError),
    ("sbatch: error: Batch job submission failed: Requested node configuration is not available", RefusedError),
    ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
     RefusedError),
    ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", UnsureError),
    ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", UnsureError),
    ("", UnsureError),
]  # fmt: skip


@pytest.mark.parametrize(("said", "error"), ERRORS)
def test_answers_of_sbatch(commands: Path, tmp_path: Path, said: str, error: type[DispatchError]) -> None:
    say(commands, "sbatch", err=said, status=1)
    with pytest.raises(error) as caught:
        Slurm().submit(batch(tmp_path))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_submission(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_CONF", "/etc/here.conf")
    say(commands, "sbatch", "Submitted batch job 4711\n")
    assert Slurm().submit(batch(tmp_path)) == "4711"
    (script,) = (tmp_path / "sub").glob("4711_submission.sh")
    lines = script.read_text().splitlines()
    assert "#SBATCH --array=0-2%3" in lines
    assert "#SBATCH --job-name=abl.1" in lines
    assert "#SBATCH --requeue" in lines
    assert lines[-2 if not lines[-1] else -1].endswith(" run me")
    assert (commands / "sbatch.job").read_text().split() == [], "sbatch must not think that it is in a job"
    assert (os.environ["SLURM_JOB_ID"], os.environ["SLURM_CONF"]) == ("99", "/etc/here.conf")


def test_every_key_of_a_profile_reaches_sbatch(tmp_path: Path) -> None:
    profile = Profile.model_validate(
        {
            "account": "a",
            "qos": "q",
            "array_parallelism": 5,
            "grace_s": 90,
            "setup": "module load cuda",
            "environment": {"NCCL_DEBUG": "it's"},
            "sbatch": {"reservation": "r"},
        }
    )
    resources = JobResources.model_validate(
        {
            "partitions": ["x", "y"],
            "nodes": 2,
            "tasks_per_node": 4,
            "gpus_per_task": 1,
            "gpu_type": "a100",
            "cpus_per_task": 6,
            "mem_gb": 0.5,
            "time_limit_min": 77,
            "constraint": "fast",
            "exclude": ["n1", "n2"],
        }
    )
    found = parameters(batch(tmp_path, profile=profile, resources=resources, after=("5_0", "6_1")))
    assert found == {
        "job_name": "abl.1",
        "partition": "x,y",
        "account": "a",
        "qos": "q",
        "constraint": "fast",
        "exclude": "n1,n2",
        "nodes": 2,
        "ntasks_per_node": 4,
        "cpus_per_task": 6,
        "gpus_per_node": "a100:4",
        "mem": "512M",
        "time": 77,
        "signal_delay_s": 90,
        "dependency": "afterany:5_0:6_1",
        "array_parallelism": 5,
        "setup": ["export NCCL_DEBUG='it'\"'\"'s'", "module load cuda"],
        "stderr_to_stdout": True,
        "srun_args": ["--cpus-per-task=6", "--kill-on-bad-exit=0"],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", "reservation": "r"},
    }
    corresponding = parameters(batch(tmp_path, corresponding="7"))
    assert corresponding["dependency"] == "aftercorr:7"


def test_no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DispatchError, match=r"there is no SLURM on this machine \(sbatch, .*`--on local`"):
        Slurm()
