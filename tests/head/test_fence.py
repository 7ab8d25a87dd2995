"""The fence: a number is given once, only the newest attempt may write, and every attempt keeps its first cause."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import StoreError, SupersededError
from harness.base.files import write_json
from harness.runs import folder as folders
from harness.runs.attempts import Attempts
from harness.runs.folder import RunFolder
from harness.runs.record import Failure
from tests.head.made import ablation, plan_of, record


def _begin(folder: Path, count: int) -> list[int]:
    return [Attempts(folder).begin() for _ in range(count)]


def test_a_number_is_given_once_whoever_asks(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        given = pool.starmap(_begin, [(tmp_path, 25)] * 4)
    assert sorted(number for one in given for number in one) == list(range(1, 101))
    assert all(one == sorted(one) for one in given)


def test_old_folders_go_on_counting(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_json(folder.progress, {"attempt": 3, "step": 7})
    with folder.claimed() as number:
        assert number == 4


(RUN,) = plan_of(ablation({"plain": {}}, seeds=1)).runs.values()
WRITES: dict[str, Callable[[RunFolder], object]] = {
    "metrics": lambda folder: folder.append_metrics(1, {"loss": 1.0}),
    "trimmed metrics": lambda folder: folder.restore_metrics(0, None),
    "record": lambda folder: folder.finish(record(RUN)),
    "failure": lambda folder: folder.fail(Failure(cause="crashed", message="", attempt=1, ended_at=1.0)),
    "progress": lambda folder: write_json(folder.progress, {"step": 9}),
    "checkpoint": lambda folder: write_json(folder.checkpoint, {}),
    "outcomes": lambda folder: write_json(folder.outcomes / "shapes.parquet", {}),
}


@pytest.mark.parametrize("name", WRITES)
def test_an_old_attempt_writes_nothing(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed():
        folder.append_metrics(1, {"loss": 2.0})
        WRITES[name](folder)
        folder.attempts.begin()
        before = {file: file.read_bytes() for file in sorted(folder.path.rglob("*")) if file.is_file()}
        with pytest.raises(SupersededError, match="attempt 2 has taken over from attempt 1"):
            WRITES[name](folder)
        assert {file: file.read_bytes() for file in sorted(folder.path.rglob("*")) if file.is_file()} == before
    WRITES[name](folder)  # whoever does not hold the run is not fenced: the head writes, too


def test_a_claim_waits_for_nobody_but_a_takeover_supersedes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "CLAIM_WAIT_S", 0.05)
    monkeypatch.setattr(folders, "TAKEOVER_WAIT_S", 0.05)
    old, new = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with old.claimed() as first:
        with pytest.raises(StoreError, match="another process works on this run"), new.claimed():
            pass
        assert new.attempts.newest() == first, "a refused claim supersedes nobody"
        begun = time.monotonic()
        with new.claimed(takeover=True) as second:
            assert second == first + 1
            assert time.monotonic() - begun >= 0.05, "the old attempt had its time to leave"
            new.attempts.check(second)
            with pytest.raises(SupersededError):
                old.attempts.check(first)


def test_the_first_statement_of_a_cause_stands(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "attempts")
    one, two = attempts.begin(), attempts.begin()
    assert [start.number for start in attempts.open()] == [one, two]
    attempts.end(one, "node_failure", "n1 died", ended_at=5.0)
    attempts.end(one, "superseded", "later")
    (first, second) = attempts.all()
    assert first.end is not None
    assert (first.end.cause, first.end.message, first.end.ended_at) == ("node_failure", "n1 died", 5.0)
    assert second.end is None
    assert [start.number for start in attempts.open()] == [two]


def test_a_job_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_ID": "15",
        "SLURM_RESTART_COUNT": "2",
        "SLURMD_NODENAME": "n7",
        "HARNESS_GPUS": "0.5",
    }.items():
        monkeypatch.setenv(name, value)
    Attempts(tmp_path).begin()
    (start,) = Attempts(tmp_path).open()
    assert (start.job, start.restart, start.host, start.gpus) == ("12_3", 2, "n7", 0.5)


def test_metrics_have_a_step_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.0), (2, 3.0)):  # the last: of an attempt that was superseded just then
        folder.append_metrics(step, {"loss": loss})
    assert [(line.step, line.values["loss"]) for line in folder.step_metrics()] == [(1, 4.0), (2, 3.0), (3, 2.0)]
