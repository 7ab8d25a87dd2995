from __future__ import annotations

import socket
import sqlite3
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from harness.base.errors import TrackingError
from harness.runs.store import Store
from harness.tracking.places import artifact_location, database_file, lock_file, probe, redacted, ui_command


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port where connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////data/m.db", "/data/m.db"),
        ("sqlite+pysqlite:////data/m.db", "/data/m.db"),
        ("sqlite:////data/m.db?timeout=5", "/data/m.db"),
        ("sqlite:////data/a%20b/m.db", "/data/a b/m.db"),
        ("sqlite:////data/a b/m.db", "/data/a b/m.db"),
        ("sqlite:///m.db", str(Path.cwd() / "m.db")),
        ("http://host:5000", None),
        ("postgresql://host/db", None),
    ],
)
def test_file_of_an_sqlite_uri_is_the_one_that_sqlalchemy_opens(uri: str, path: str | None) -> None:
    from sqlalchemy import make_url

    assert database_file(uri) == (Path(path) if path else None)
    if path:
        opened = make_url(uri).database
        assert opened is not None
        assert Path(opened).absolute() == Path(path)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match="names no file"):
        probe(uri)


def test_passwords_are_not_shown(closed_port: int) -> None:
    uri = f"postgresql+psycopg2://ada:s3cret@127.0.0.1:{closed_port}/mlflow"
    assert redacted(uri) == uri.replace("s3cret", "***")
    assert redacted("http://ada:s3@cret@host:5000") == "http://ada:***@host:5000"
    assert redacted("http://host:5000/a@b") == "http://host:5000/a@b"
    with pytest.raises(TrackingError) as caught:
        probe(uri)
    assert "s3cret" not in str(caught.value)
    assert "does not answer" in str(caught.value)


def test_a_dead_server_and_a_deaf_one_are_told_at_once(closed_port: int, deaf_port: int) -> None:
    for port in (closed_port, deaf_port):
        with pytest.raises(TrackingError, match=rf"http://127.0.0.1:{port}: .*does not answer.*; start it"):
            probe(f"http://127.0.0.1:{port}")


def test_user_and_password_in_an_address_are_sent(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200 if seen[-1] == f"Basic {b64encode(b'ada:s3/cret').decode()}" else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        probe(f"http://ada:s3%2Fcret@{place}/")
        probe(f"http://{place}")  # the client may have them from the environment
        with pytest.raises(TrackingError, match="refuses this user and password") as caught:
            probe(f"http://ada:wrong@{place}")
        server.shutdown()
    assert "wrong" not in str(caught.value)
    assert len(seen) == 3


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("this is no database " * 100)
    with pytest.raises(TrackingError, match=r"is damaged .* move it away"):
        probe(f"sqlite:///{file}")
    assert file.read_text().startswith("this is no database")


def test_a_database_that_is_there_or_can_be_made_is_taken_and_nothing_is_created(tmp_path: Path) -> None:
    file = tmp_path / "there.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE t (x)")
    probe(f"sqlite:///{file}")
    probe(f"sqlite:///{tmp_path}/deep/down/mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == ["there.db"]


def test_a_folder_that_cannot_hold_the_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot be created"):
        probe(f"sqlite:///{tmp_path}/file/mlflow.db")


@pytest.mark.parametrize("uri", ["file:///data/mlruns", "/data/mlruns"])
def test_the_file_store_that_mlflow_gave_up_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match="no file store"):
        probe(uri)


def test_locks_and_artifacts_lie_beside_the_database_or_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    shared = f"sqlite:///{tmp_path}/my runs/mlflow.db"
    assert lock_file(shared, store) == tmp_path / "my runs/mlflow.db.lock"
    assert artifact_location(shared, store) == (tmp_path / "my runs/mlflow-artifacts").as_uri()
    assert lock_file("http://host", store) == tmp_path / "store/tracking.lock"
    assert artifact_location("http://host", store) is None
    assert artifact_location("postgresql://host/db", store) == (tmp_path / "store/mlflow-artifacts").as_uri()


def test_the_ui_command_names_the_store_and_serves_this_machine_only(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = ui_command(uri, 5055)
    assert Path(command[0]).is_file()
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in command
    assert command[command.index("--backend-store-uri") + 1] == uri
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5055"
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TrackingError, match=r"port \d+ cannot be used .*; give another with --port"):
            ui_command(uri, other.getsockname()[1])
    with pytest.raises(TrackingError, match="open it in a browser"):
        ui_command("https://tracking.lab", 5055)
