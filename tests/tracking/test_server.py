"""Against a real `mlflow server`: what it holds is read from its own database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import TrackingError
from harness.tracking import SyncResult, probe, sync, ui_command
from tests.tracking.conftest import Place
from tests.tracking.world import content, record_of, rows

pytestmark = pytest.mark.slow


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while True:
        try:
            return probe(address)
        except TrackingError:
            assert time.monotonic() < until, "the server did not start"
            assert process.poll() is None, "the server ended"
            time.sleep(0.5)


class Server:
    """A tracking server of its own database and artifacts, which can be killed and started again on its port."""

    def __init__(self, root: Path) -> None:
        self.database = root / "mlflow.db"
        self._artifacts = root / "mlflow-artifacts"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self._artifacts), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **quiet},
            cwd=self.database.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.uri, self._process)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "server"
    root.mkdir()
    server = Server(root)
    server.start()
    yield server
    server.kill()


def test_a_server_killed_in_the_middle_and_brought_back_holds_the_same(
    finished: Place,
    server: Server,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from mlflow.tracking import MlflowClient

    real, calls = MlflowClient.log_artifact, 0

    def killing(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            server.kill()
        real(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_artifact", killing)
    with pytest.raises(TrackingError, match="did not accept the records"):
        sync(finished.plan, finished.store, server.uri)
    with pytest.raises(TrackingError, match="does not answer"):
        sync(finished.plan, finished.store, server.uri)
    server.start()
    assert sync(finished.plan, finished.store, server.uri) == SyncResult(imported=4, unchanged=1)
    assert content(server.database) == undisturbed
    assert sync(finished.plan, finished.store, server.uri, again=True) == SyncResult(imported=5)
    assert content(server.database) == undisturbed
    assert rows(server.database, "SELECT count(*) FROM runs") == [(7,)]
    assert capfd.readouterr() == ("", "")


def test_with_nothing_new_a_server_is_not_asked_and_an_emptied_one_is_filled_again(
    finished: Place, server: Server, undisturbed: dict[str, Any]
) -> None:
    sync(finished.plan, finished.store, server.uri)
    server.signal(signal.SIGSTOP)
    try:
        assert sync(finished.plan, finished.store, server.uri) == SyncResult(unchanged=5)
        with pytest.raises(TrackingError, match="does not answer"):
            sync(finished.plan, finished.store, server.uri, again=True)
    finally:
        server.signal(signal.SIGCONT)
    server.kill()
    server.database.unlink()
    server.start()
    folder = finished.store.run(finished.plan.cells["clip", 0])
    folder.finish(record_of(folder.id, acc5=0.5))
    assert sync(finished.plan, finished.store, server.uri) == SyncResult(imported=5)
    assert len(content(server.database)["params"]) == len(undisturbed["params"])


def test_an_importer_that_is_killed_again_and_again_gets_there(
    finished: Place, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    code = f"""
from pathlib import Path
from harness.runs.store import Store
from harness.tracking import sync
from tests.tracking.world import plan_of
import mlflow.tracking
print("begun", flush=True)
sync(plan_of(), Store(Path({str(finished.store.root)!r})), {finished.uri!r})
"""
    for delay_s in (0.3, 0.6, 0.9, 1.2):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(delay_s)
        process.kill()
        process.wait()
    sync(finished.plan, finished.store, finished.uri)
    assert finished.content() == undisturbed


def test_the_ui_shows_runs_and_hands_out_their_files(finished: Place) -> None:
    sync(finished.plan, finished.store, finished.uri)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        ui_command(finished.uri, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(address, process)
        key = "SELECT run_uuid FROM tags WHERE key = 'harness.key' AND value = ?"
        ((mlflow_id,),) = rows(finished.database, key, finished.plan.cells["clip", 0])
        with urllib.request.urlopen(f"{address}/get-artifact?path=record.json&run_uuid={mlflow_id}") as answer:
            shown = answer.read().decode()
        assert shown == finished.store.run(finished.plan.cells["clip", 0]).record_file.read_text()
        with urllib.request.urlopen(f"{address}/") as answer:
            assert b"<title>MLflow</title>" in answer.read()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
