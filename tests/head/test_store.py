"""Run folders: where a run stands, who works on it, and what is told of files that somebody damaged."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.base.errors import StoreError
from harness.base.locks import Holder, exclusive, holder
from harness.runs import folder as folder_module
from harness.runs.folder import RunFolder, State
from harness.runs.planned import PlannedRun
from harness.runs.record import Cause, Failure
from harness.runs.store import Store
from tests.head.made import ablation, is_one_sentence, plan_of, record
from tests.records import metric_in

PLAN = plan_of(ablation({"plain": {}, "more": {"captions": {"count": 2}}}, seeds=2))
RUN, OTHER, *_ = PLAN.runs.values()


def prepared(root: Path, run: PlannedRun = RUN) -> RunFolder:
    folder = Store(root).run(run.id)
    folder.prepare(run.identity, {"threads": 1})
    return folder


def failure(cause: Cause) -> Failure:
    return Failure(cause=cause, message="it said so", attempt=1, ended_at=1.0)


def test_states(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.run(RUN.id)
    seen = [folder.state()]
    prepared(tmp_path)
    seen.append(folder.state())
    folder.progress.write_text("{}")
    seen.append(folder.state())
    with folder.claimed():
        seen.append(folder.state())
    for cause in ("interrupted", "user_error", "crashed", "out_of_memory"):
        folder.fail(failure(cause))
        seen.append(folder.state())
    folder.finish(record(RUN.id))
    seen.append(folder.state())
    with folder.claimed():  # it is only measured again
        seen.append(folder.state())
    m, i, r, f, d = State.MISSING, State.INTERRUPTED, State.RUNNING, State.FAILED, State.DONE
    assert seen == [m, m, i, r, i, f, f, f, d, d]
    assert not folder.failure_file.exists()
    assert store.states(PLAN.runs) == {run: d if run == RUN.id else m for run in PLAN.runs}


def test_states_of_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    assert set(Store(tmp_path / "none").states(PLAN.runs).values()) == {State.MISSING}
    assert Store(tmp_path / "none").runs() == []


def test_a_spec_is_frozen_once_and_compared_after_that(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    frozen = folder.spec.read_bytes()
    folder.prepare(RUN.identity, {"threads": 2})
    assert folder.spec.read_bytes() == frozen
    assert json.loads(folder.request.read_text()) == {"threads": 2}
    assert folder.resolved() == json.loads(json.dumps(RUN.identity.resolved))
    with pytest.raises(StoreError, match="was made with other defaults: "):
        folder.prepare(OTHER.identity, {})
    assert json.loads(folder.request.read_text()) == {"threads": 2}


def test_a_changed_default_under_an_old_id(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    table = json.loads(folder.spec.read_text())
    table["resolved"]["train"]["optimiser"]["eps"] = 1e-8
    folder.spec.write_text(json.dumps(table))
    with pytest.raises(StoreError) as caught:
        folder.check(RUN.identity)
    assert str(caught.value) == (
        f"{folder.path}: run {RUN.id} was made with other defaults: train.optimiser.eps 1e-08 -> 1e-06; state the old "
        "value in the spec, or raise the spec's `algorithm` version, or move the folder away"
    )


def test_a_new_attempt_forgets_the_failure_of_the_last(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    folder.fail(failure("user_error"))
    prepared(tmp_path)
    assert folder.state() is State.MISSING


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"a": "x"}', '{"version": 2}'])
def test_damaged_files(tmp_path: Path, content: str) -> None:
    folder = prepared(tmp_path)
    looks: dict[Path, Callable[[], object]] = {
        folder.record_file: folder.record,
        folder.failure_file: folder.failure,
        folder.progress: folder.read_progress,
        folder.spec: lambda: folder.check(RUN.identity),
    }
    for file, look in looks.items():
        file.write_text(content)
        if file == folder.progress and content == '{"version": 2}':
            continue
        with pytest.raises(StoreError) as caught:
            look()
        assert is_one_sentence(caught.value)
        assert str(caught.value).startswith(f"{file}: ")
        assert caught.value.fix


def test_a_damaged_record_says_which_key(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    table = record(RUN.id).model_dump(mode="json")
    folder.record_file.write_text(json.dumps({**table, "steps": "many"}))
    with pytest.raises(StoreError, match=r"record.json: is damaged \(steps: .*\); move it away to run"):
        folder.record()


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    one = record(RUN.id, requests={"shapes": "k"})
    folder.finish(one)
    assert folder.record().model_copy(update={"seal": None}) == one
    found = metric_in(one, "shapes/acc1")
    assert found is not None
    assert (found.value, found.samples) == (0.5, 10)
    assert metric_in(one, "shapes/acc5") is None
    assert metric_in(one, "shapes_retrieval/acc1") is None


@pytest.mark.parametrize("torn", [b'{"step": 3', b"\xff", b'{"step":3,"time":1.0,"values":{}}'])
def test_a_torn_line_of_metrics_is_left_out(tmp_path: Path, torn: bytes) -> None:
    folder = prepared(tmp_path)
    for step in (1, 2):
        folder.append_metrics(step, {"loss": step / 3})
    with folder.metrics.open("ab") as stream:
        stream.write(torn)
    assert [(line.step, line.values) for line in folder.step_metrics()] == [(1, {"loss": 1 / 3}), (2, {"loss": 2 / 3})]
    folder.restore_metrics(2, None)
    folder.append_metrics(3, {"loss": 1.0})
    assert [line.step for line in folder.step_metrics()] == [1, 2, 3]


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    folder.restore_metrics(0, None)
    assert folder.step_metrics() == []
    for step in range(1, 6):
        folder.append_metrics(step, {"loss": 1.0})
    before = folder.metrics.read_text().splitlines(keepends=True)
    folder.restore_metrics(3, None)
    assert folder.metrics.read_text() == "".join(before[:3])
    folder.restore_metrics(0, None)
    assert folder.step_metrics() == []


@pytest.mark.parametrize("line", ["{}", "no JSON", '{"step": -1, "time": 0, "values": {}}', '{"step": 2'])
def test_a_damaged_line_of_metrics_is_left_out_and_counted(tmp_path: Path, line: str) -> None:
    folder = prepared(tmp_path)
    folder.append_metrics(1, {"loss": 1.0})
    with folder.metrics.open("a") as stream:
        stream.write(f"{line}\n")
    folder.append_metrics(2, {"loss": 0.5})
    assert [one.step for one in folder.step_metrics()] == [1, 2]
    assert folder.damaged_lines() == [2]


def test_a_claimed_run_is_refused_to_others_and_says_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "CLAIM_WAIT_S", 0.05)
    folder = prepared(tmp_path)
    assert folder.holder() is None
    with folder.claimed():
        assert folder.holder() == Holder(os.getpid(), socket.gethostname())
        assert Holder(os.getpid(), socket.gethostname()).is_here
        assert not Holder(os.getpid(), "elsewhere").is_here
        with (
            pytest.raises(StoreError, match="another process works on this run; wait for it"),
            RunFolder(folder.path).claimed(),
        ):
            pass
    assert not folder.is_locked()
    assert folder.holder() is None


@contextmanager
def looked_at(folder: RunFolder) -> Iterator[None]:
    """As if somebody looked whether the run is locked, for longer than the instant that it takes."""
    with folder.lock.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def test_two_that_look_do_not_take_each_other_for_a_worker(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    folder.lock.touch()
    with looked_at(folder):
        assert not folder.is_locked()
        assert folder.state() is State.MISSING


def test_a_claim_outlasts_a_look(tmp_path: Path) -> None:
    folder, looking = prepared(tmp_path), threading.Event()
    folder.lock.touch()

    def look() -> None:
        with looked_at(folder):
            looking.set()
            time.sleep(0.1)

    looker = threading.Thread(target=look)
    looker.start()
    looking.wait()
    with folder.claimed():
        assert folder.is_locked()
    looker.join()


def test_a_claim_sweeps_up_after_killed_attempts(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    left = [
        f".{name}.abcdef" for name in ("checkpoint.pt", "weights.pt", "record.json", "progress.json", "metrics.jsonl")
    ]
    others = [".spec.json.abcdef", ".request.json.abcdef", "checkpoint.pt"]  # the head may be writing these
    for name in left + others:
        (folder.path / name).write_text("x")
    with folder.claimed():
        names = {file.name for file in folder.path.iterdir()}
    assert not names & set(left)
    assert set(others) <= names


def test_conducting_commands_announce_themselves(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.running_commands("a") == []
    with store.registered("a"), store.registered("a.b"):
        assert store.running_commands("a") == [Holder(os.getpid(), socket.gethostname())]
        assert len(store.running_commands("a.b")) == 1
        assert store.running_commands("b") == []
    assert store.running_commands("a") == []


def test_a_killed_command_conducts_nothing(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from harness.runs.store import Store\n"
    code += "with Store(Path(sys.argv[1])).registered('a'): print('here', flush=True); time.sleep(600)"
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "here\n"
    assert [found.pid for found in Store(tmp_path).running_commands("a")] == [command.pid]
    command.kill()
    command.communicate()
    assert Store(tmp_path).running_commands("a") == []


def test_a_lock_that_does_not_say_who_holds_it(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", wait=False):
        (tmp_path / "lock").write_text("")
        assert holder(tmp_path / "lock") is None


def test_find(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for run in PLAN.runs.values():
        prepared(tmp_path, run)
    assert store.find(RUN.id).id == RUN.id
    with pytest.raises(StoreError, match="4 runs have an id that begins with ''; give more digits"):
        store.find("")
    with pytest.raises(
        StoreError, match="0 runs have an id that begins with 'xyz'; list the ids with `harness status SPEC`"
    ):
        store.find("xyz")
