"""Tracking URIs: what they name and whether it is usable, checked within seconds and without importing MLflow.

MLflow itself must not find out: with a damaged SQLite file or a dead PostgreSQL it tries for 100 s, with a dead
server for 8 minutes.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from harness.base.errors import TrackingError
from harness.runs.store import Store

CONNECT_TIMEOUT_S = 2.0
LATER = "`harness sync SPEC` continues where it stopped"
_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(.*)", re.DOTALL)
_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def database_file(uri: str) -> Path | None:
    """The file of an SQLite URI (as SQLAlchemy reads it: `%20` is a space), or None for any other URI.

    Raises:
        TrackingError: the URI names no file.
    """
    match = _SQLITE.fullmatch(uri)
    if match is None:
        return None
    path = unquote(match[1].partition("?")[0].removeprefix("/"))
    if not path or path == ":memory:":
        raise TrackingError("names no file", where=uri, fix="write sqlite:////absolute/path/mlflow.db")
    return Path(path).absolute()


def redacted(uri: str) -> str:
    """`uri` without its password, to be shown or kept."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", uri)


def lock_file(uri: str, store: Store) -> Path:
    """Lock file of an import: next to an SQLite file, which several stores may share; otherwise in the store."""
    file = database_file(uri)
    return store.root / "tracking.lock" if file is None else file.with_name(f"{file.name}.lock")


def artifact_location(uri: str, store: Store) -> str | None:
    """Location of artifacts. None if a tracking server decides. MLflow's own default is the working folder."""
    file = database_file(uri)
    if file is not None:
        return (file.parent / "mlflow-artifacts").as_uri()
    return (store.root.absolute() / "mlflow-artifacts").as_uri() if _dialect(uri) in _PORTS else None


def probe(uri: str) -> None:
    """Raise TrackingError within seconds if `uri` cannot be used. Creates nothing."""
    file = database_file(uri)
    scheme = urlsplit(uri).scheme
    if file is not None:
        _probe_file(file)
    elif scheme in ("http", "https"):
        _probe_server(uri)
    elif _dialect(uri) in _PORTS:
        _probe_port(uri)
    elif scheme in ("", "file"):
        raise TrackingError("MLflow 3 has no file store", where=uri, fix=f"write sqlite:///{uri}/mlflow.db")


def ui_command(uri: str, port: int) -> list[str]:
    """The command that serves MLflow's UI on the records at `uri`, for this machine only.

    Raises:
        TrackingError: `uri` is a tracking server, which has its own UI, or the port is taken.
    """
    if urlsplit(uri).scheme in ("http", "https"):
        raise TrackingError("is a server with its own UI", where=redacted(uri), fix="open it in a browser")
    with closing(socket.socket()) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(
                f"port {port} cannot be used ({error.strerror})", fix="give another with --port"
            ) from error
    file = database_file(uri)
    root = (file.parent if file else Path.cwd()) / "mlflow-artifacts"
    settings = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    server = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    place = ["--default-artifact-root", root.as_uri(), "--host", "127.0.0.1", "--port", str(port)]
    return ["/usr/bin/env", *settings, *server, *place]


def ui_page(uri: str, port: int, experiment: str | None) -> str:
    """The page of the UI to begin with: the arms of `experiment` as charts, or all experiments."""
    base = f"http://127.0.0.1:{port}"
    file = database_file(uri)
    if experiment is None or file is None or not file.exists():
        return base
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=CONNECT_TIMEOUT_S)) as database:
        found = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)).fetchone()
    view = quote("tags.`harness.role` = 'arm'")
    return f"{base}/#/experiments/{found[0]}?searchFilter={view}&compareRunsMode=CHART" if found else base


def _dialect(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[0]


def _probe_file(file: Path) -> None:
    where = str(file)
    if not file.exists():
        folder = next(parent for parent in file.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise TrackingError("cannot be created", where=where, fix=f"make {folder} writable or set tracking_uri")
        return
    if not os.access(file, os.R_OK | os.W_OK):
        raise TrackingError("cannot be written", where=where, fix="fix its permissions or set tracking_uri")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=CONNECT_TIMEOUT_S)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        raise TrackingError(f"cannot be read ({error})", where=where, fix=LATER) from error
    except sqlite3.DatabaseError as error:
        fix = "move it away: all records are imported again from the store"
        raise TrackingError(f"is damaged ({error})", where=where, fix=fix) from error


def _probe_server(uri: str) -> None:
    """Any answer counts as alive, because a proxy may hide /health."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/health").geturl())
    if at:
        request.add_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code == 401 and at:
            raise TrackingError(
                "refuses this user and password",
                where=redacted(uri),
                fix="correct them, and write special characters as %40 and the like",
            ) from error
        if error.code < 500:
            return
        what = f"answers with HTTP status {error.code}"
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        what = f"the tracking server does not answer ({reason})"
    raise TrackingError(what, where=redacted(uri), fix="start it or correct tracking_uri")


def _probe_port(uri: str) -> None:
    parts = urlsplit(uri)
    address = (parts.hostname or "localhost", parts.port or _PORTS[_dialect(uri)])
    try:
        with socket.create_connection(address, timeout=CONNECT_TIMEOUT_S):
            return
    except OSError as error:
        what = f"the database does not answer ({error})"
        raise TrackingError(what, where=redacted(uri), fix="start it or correct tracking_uri") from error
