"""`run --on slurm/NAME.toml`, `status`, `cancel`: the command over a made scheduler."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from harness import cli
from harness.execute import run as engine
from harness.execute.slurm import executor as sweep
from harness.execute.slurm import jobs
from harness.execute.slurm.client import Slurm
from harness.planning.workspace import Project
from harness.runs.store import Store
from tests.execute.made import MadeScheduler, attempted, causes
from tests.head.made import SMALL, record, write

PLAIN = """
question = "Does it help?"
experiment = "small.toml"
baseline = "plain"
primary = "shapes/acc1"
seeds = 2
[arms.plain]
[arms.more]
captions.count = 5
loss.kind = "multi_positive_sigmoid"
"""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> MadeScheduler:
    made = MadeScheduler()
    for module in (engine, jobs):
        monkeypatch.setattr(module, "Slurm", lambda: made)
    monkeypatch.setattr(engine, "prepare_data", lambda _plan, _store: None)
    monkeypatch.setattr(sweep, "snapshot", lambda root: root / "copy")
    return made


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small = SMALL + '[data]\nkind = "shapes"\ntrain_samples = 256\ntest_samples = 36\n'
    file = write(tmp_path, {"ablation.toml": PLAIN, "small.toml": small})
    (tmp_path / "mine.toml").write_text('partitions = ["gpu"]\ngpus_per_task = 1\ntime_limit_min = 30\n')
    monkeypatch.chdir(tmp_path)
    return file


def harness(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    code = left.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0), out, err


def store_of(spec: Path) -> Store:
    return Project.at(spec.parent).store


def submitted(capsys: pytest.CaptureFixture[str], spec: Path, *more: object) -> str:
    code, out, err = harness(capsys, "run", spec, "--on", "mine.toml", "--detach", *more)
    assert code == 0, err
    return out


def test_detached(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    out = submitted(capsys, spec)
    assert out.splitlines()[0] == "0 of 4 runs are done, 0 running, 4 pending in the queue"
    assert f"`harness status {spec} --watch`" in out
    submitted(capsys, spec)
    assert len(slurm.jobs) == 4


def test_status_shows_jobs_first_seen_from_their_folders(
    spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(capsys, spec)
    store = store_of(spec)
    first, second, third, fourth = (slurm.runs_of(job)[0] for job in slurm.jobs)
    slurm.run("1_0")
    attempted(store.run(first), "1_0", step=30)
    attempted(store.run(second), "1_1", "user_error", message="no such file")
    slurm.end("1_1", "FAILED", reason="1:0")
    slurm.end("1_2", "CANCELLED")
    slurm.calls.clear()
    _, out, _ = harness(capsys, "status", spec)
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "running" in lines[first]
    assert "30 of 300" in lines[first]
    assert "failed: user_error" in out
    assert f"{second}: no such file" in out
    assert "missing (cancelled)" in lines[third]
    assert "pending (Priority)" in lines[fourth]
    assert slurm.calls.count("queue") == 1


def test_status_when_slurm_is_silent(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(capsys, spec)
    slurm.silent = True
    code, out, err = harness(capsys, "status", spec)
    assert code == 0
    assert "4 pending" in out
    assert "warning: queue does not answer: the states of jobs are unknown for now" in err


def test_a_clock_that_is_ahead_is_told(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(capsys, spec)
    slurm.run("1_0")
    folder = store_of(spec).run(slurm.runs_of("1_0")[0])
    attempted(folder, "1_0")
    folder.progress.write_text(f'{{"step": 3, "steps": 300, "attempt": 1, "time": {time.time() + 600}}}')
    _, _, err = harness(capsys, "status", spec)
    assert (
        "warning: the clock of n1 is 10 min ahead of this machine's: times here are off by that, results are not" in err
    )


def test_cancelling_and_asking_again(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(capsys, spec)
    run = slurm.runs_of("1_1")[0]
    code, out, _ = harness(capsys, "cancel", run)
    assert (code, slurm.cancelled) == (0, ["1_1"])
    assert "cancelled 1 jobs" in out
    _, out, _ = harness(capsys, "cancel", spec)
    assert sorted(slurm.cancelled) == ["1_0", "1_1", "1_2", "1_3"]
    submitted(capsys, spec)
    assert len(slurm.jobs) == 8
    assert causes(store_of(spec).run(run)) == ["cancelled"]


def test_logs_of_a_run_that_queues(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(capsys, spec)
    folder = store_of(spec).run(slurm.runs_of("1_0")[0])
    _, out, _ = harness(capsys, "logs", folder.id)
    job = slurm.batches["1"].folder
    assert out == f"run {folder.id} has written nothing yet; its job's output is in {job}\n"
    folder.log.write_text("at work\n")
    folder.finish(record(Project.at(spec.parent).plan(spec).runs[folder.id]))
    assert harness(capsys, "logs", folder.id, "-f")[1] == "at work\n"


def test_arms_that_vanished(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(capsys, spec)
    spec.write_text(PLAIN.partition("[arms.more]")[0])
    code, _, err = harness(capsys, "run", spec, "--on", "mine.toml", "--detach")
    assert code == 0
    assert "2 runs of ablation are in jobs, but the spec no longer contains them" in err
    assert slurm.cancelled == []
    _, out, _ = harness(capsys, "cancel", spec, "--vanished")
    assert "cancelled 2 jobs" in out
    _, out, _ = harness(capsys, "cancel", spec, "--vanished")
    assert "no job has a run that the spec does not contain" in out


def test_what_jobs_have_does_not_run_here_as_well(
    spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(capsys, spec)
    code, _, err = harness(capsys, "run", spec)
    assert code == 2
    assert err.startswith(
        "harness: ablation: 4 runs of it are in jobs of SLURM; continue with `--on` and their profile"
    )


def test_what_is_held_back_goes_on_in_the_background_within_its_budget(
    spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []

    class Begun:
        pid = 1

        def __init__(self, command: list[str], **_: object) -> None:
            begun.append(command)

    monkeypatch.setattr("harness.execute.run.subprocess.Popen", Begun)
    code, out, err = harness(capsys, "run", spec, "--on", "mine.toml", "--detach", "--max-gpu-hours", "1", "--yes")
    assert code == 1, "not all is in the hands of jobs"
    assert "no job is known yet that will finish 2 runs (" in err
    assert "process 1 continues in the background" in out
    assert "2 jobs are held back by the budget" in out
    assert len(slurm.jobs) == 2
    assert begun[0][3:] == ["run", str(spec), "--on", "mine.toml", "--max-gpu-hours", "1.0", "--yes"]


def test_cancel_says_what_it_could_not_do_yet(
    spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(capsys, spec)
    slurm.silent = True
    code, out, err = harness(capsys, "cancel", spec)
    assert (code, out) == (1, "")
    assert "4 jobs are marked as cancelled, but SLURM did not answer" in err
    assert harness(capsys, "cancel", spec)[0] == 1, "it has not been told yet"
    slurm.silent = False
    code, out, _ = harness(capsys, "cancel", spec)
    assert code == 0
    assert "cancelled 4 jobs" in out


def test_a_run_in_progress_here_is_not_given_to_jobs(
    spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(capsys, spec)
    slurm.cancel(list(slurm.jobs))
    before = len(slurm.batches)
    folder = store_of(spec).runs()[0]
    with folder.claimed():
        code, _, err = harness(capsys, "run", spec, "--on", "mine.toml", "--detach")
    assert code == 2
    assert "1 runs of it are in progress outside of SLURM; wait for them, or stop them" in err
    assert len(slurm.batches) == before


def test_bad_profiles_and_no_slurm(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = harness(capsys, "run", spec, "--on", "none.toml")
    assert (code, err) == (2, "harness: none.toml: there is no such file; shipped profiles are in slurm/\n")
    monkeypatch.setattr(engine, "Slurm", Slurm)
    monkeypatch.setenv("PATH", str(spec.parent))
    code, _, err = harness(capsys, "run", spec, "--on", "mine.toml")
    assert code == 2
    assert err.startswith("harness: there is no SLURM on this machine (sbatch,")


def test_a_budget_that_nobody_can_be_asked_about(
    spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = harness(capsys, "run", spec, "--on", "mine.toml", "--detach", "--max-gpu-hours", "1")
    assert code == 2
    assert "4 runs may take 2 GPU-hours beside the 0 used; the budget is 1" in err
    assert slurm.jobs == {}


def test_a_store_that_cannot_be_written(spec: Path, slurm: MadeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    (spec.parent / "store").mkdir(exist_ok=True)
    (spec.parent / "store" / "submissions").write_text("in the way")
    code, _, err = harness(capsys, "run", spec, "--on", "mine.toml", "--detach")
    assert code == 2
    assert "submissions" in err
    assert "cannot be written" in err
    assert "Traceback" not in err
    assert slurm.jobs == {}
