"""An ablation that the old code finished or left half-done: the current code takes it as its own."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.before.old import JOBS, PATIENCE_S, Harness, arms, assert_same_results, planned, runs

pytestmark = pytest.mark.slow
WATCHED = ("clip/0", "fff/0")
"""Runs that are stopped in the middle: the first by kill -9 of its worker, the second by SIGTERM."""
TRIES = 3
"""On a busy machine a run may be over before it is stopped."""


def written(store: Path) -> dict[str, int]:
    """When each file of the run folders was last written."""
    files = [file for folder in runs(store).values() for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(store)): file.stat().st_mtime_ns for file in files if file.name != "lock"}


def numbers(harness: Harness, store: Path) -> dict[str, Any]:
    """What a report says about each metric, arm and seed. Intervals are estimated otherwise now."""
    told = json.loads(harness.command(store, "report", "ablation.toml", "--format", "json"))
    means = ("summary", "difference")
    return {
        f"{metric['metric']} of {arm['arm']}": (
            metric["protocol_id"],
            arm["values"],
            *((arm[part]["n"], arm[part]["mean"]) for part in means if arm[part]),
        )
        for metric in told["metrics"]
        for arm in metric["arms"]
    }


def test_what_the_old_code_finished_is_done(old: Harness, current: Harness, done: Path) -> None:
    before, said = written(done), numbers(old, done)
    plan = planned(current, done)
    assert {run["id"]: run["state"] for run in plan["runs"]} == dict.fromkeys(runs(done), "done")
    assert len(plan["runs"]) == 5
    assert arms(plan) == arms(planned(old, done))
    current.command(done, "run", "ablation.toml", "--jobs", JOBS)
    assert written(done) == before, "a finished run was carried out again"
    assert numbers(current, done) == said
    assert len(said) > len(plan["arms"])
    told = current.command(done, "status", "ablation.toml").splitlines()
    lines = {line.split()[0]: line for line in told if line}
    assert all(" done " in lines[run] for run in runs(done)), told


def test_the_current_code_trains_to_the_same_bits(current: Harness, done: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    current.command(store, "run", "ablation.toml", "--jobs", JOBS)
    assert_same_results(store, done)


def test_the_current_code_continues_half_done_runs_to_the_same_bits(
    old: Harness, current: Harness, done: Path, tmp_path: Path
) -> None:
    names = arms(planned(old, tmp_path / "plan"))
    watched = [names[name] for name in WATCHED]
    store = next(
        store for number in range(TRIES) if leave_half_done(old, store := tmp_path / f"store-{number}", watched)
    )
    before = {run: first_line(store, run) for run in watched}
    current.command(store, "run", "ablation.toml", "--jobs", JOBS)
    assert_same_results(store, done)
    assert {run: first_line(store, run) for run in watched} == before, "a run began anew instead of at its checkpoint"


def first_line(store: Path, run: str) -> str:
    """The first line of a run's metrics. Its time tells which attempt has written it."""
    return (store / "runs" / run / "metrics.jsonl").read_text().splitlines()[0]


def leave_half_done(old: Harness, store: Path, watched: list[str]) -> bool:
    """Run the old code until each of the watched runs has a checkpoint and is not over; then stop everything.

    A run that has a checkpoint is frozen at once, so that it cannot end before the others have one.

    Returns:
        False where one of the runs was over too soon.
    """
    log = store.with_name(f"{store.name}.log")
    command = old.start(store, "run", "ablation.toml", "--jobs", JOBS)
    frozen: dict[str, int] = {}
    try:
        until = time.monotonic() + PATIENCE_S
        while len(frozen) < len(watched):
            if command.poll() is not None:
                assert command.returncode == 0, log.read_text()
                return False
            assert time.monotonic() < until, f"no checkpoint of {watched}: {log.read_text()}"
            for run in watched:
                if run not in frozen and (store / "runs" / run / "checkpoint.pt").exists():
                    frozen[run] = progress(store, run)["pid"]
                    os.kill(frozen[run], signal.SIGSTOP)
            time.sleep(0.005)
        command.send_signal(signal.SIGTERM)  # from now on the command starts nothing
        while "stopping" not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.01)
        os.kill(frozen[watched[0]], signal.SIGKILL)
        for run in watched[1:]:
            os.kill(frozen[run], signal.SIGCONT)
        command.wait(timeout=PATIENCE_S)
    finally:
        for pid in frozen.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        command.kill()
        command.wait()
    if any((store / "runs" / run / "record.json").exists() for run in watched):
        return False
    for run in watched:
        assert (store / "runs" / run / "checkpoint.pt").exists()
        assert 0 < progress(store, run)["step"] < progress(store, run)["steps"]
    return True


def progress(store: Path, run: str) -> dict[str, int]:
    """A run's last progress report."""
    found: dict[str, int] = json.loads((store / "runs" / run / "progress.json").read_text())
    return found
