"""The only module that calls MLflow. It is imported inside functions, because the import takes seconds.

MLflow has no unique keys, so every write first looks for what is there. An interrupted import leaves a run without its
stamp, and the next one completes it.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.boundary import as_sentence
from harness.base.errors import TrackingError
from harness.base.files import replacing
from harness.tracking.known import STAMP
from harness.tracking.model import FOLDER, model_folder
from harness.tracking.places import LATER, database_file, redacted
from harness.tracking.projection import Input, MlflowRun, Point, line_points, lines_digest

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.entities import Experiment as MlflowExperiment

KEY = "harness.key"
PARENT = "mlflow.parentRunId"
LINES = "harness.lines"
"""`sent intended digest`: lines of metrics.jsonl that arrived, lines about to be sent, and a digest of them."""
REPLACED = "replaced"
"""The stamp of a run that another run replaced."""
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits for one request
# MLflow's defaults are 7 retries of 120 s each, and to wait for as long as a server's Retry-After asks
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def mlflow_session(uri: str) -> Iterator[None]:
    """Short timeouts, no telemetry, no output. Every exception of MLflow becomes one TrackingError."""
    before = dict(os.environ)
    wanted = {**_PATIENCE, **{name: before[name] for name in _PATIENCE if name in before}, **_QUIET}
    if database_file(uri) is not None:
        # a pooled connection would keep writing to a file that was deleted in the meantime
        wanted["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    os.environ.update(wanted)
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3", "psycopg")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with _translated(uri):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in wanted:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None and (told := as_sentence(error)) is not None:
            raise TrackingError(told.what, where=told.where, fix=told.fix) from error  # a file, not the server
        what = f"MLflow did not accept the records ({_reason(error)})"
        raise TrackingError(what, where=redacted(uri), fix=LATER) from error
    except ModuleNotFoundError as error:
        fix = f"install {error.name}, or run a tracking server and name its http:// address"
        raise TrackingError(f"needs the Python package {error.name}", where=redacted(uri), fix=fix) from error


def _reason(error: Exception) -> str:
    """The innermost cause that an exception's text names, on one line."""
    text = redacted(" ".join(str(error).split()))
    cause = text.rpartition("(Caused by ")[2].rstrip(")") if "(Caused by " in text else text
    return cause if len(cause) <= 200 else f"{cause[:200]}..."


def create_database(file: Path) -> None:
    """Create MLflow's SQLite database atomically: a kill during its migrations would leave an unusable one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(file) as aside:
        quoted = str(aside).replace("%", "%25").replace("?", "%3F")
        artifacts = (file.parent / "mlflow-artifacts").as_uri()
        store = SqlAlchemyStore(f"sqlite:///{quoted}", artifacts)  # type: ignore[no-untyped-call]
        store.engine.dispose()


class TrackedExperiment:
    """One MLflow experiment, created or found by name."""

    def __init__(self, uri: str, name: str, *, location: str | None, note: str) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(name) or self._create_experiment(name, location)
        self.id: str = found.experiment_id
        self.tags: Mapping[str, str] = dict(found.tags)
        self.birth = f"{found.experiment_id} of {found.creation_time}"
        """Another one under the same name means that the server was emptied meanwhile."""
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(self.id)
        self.tag("mlflow.note.content", note)

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the experiment."""
        if self.tags.get(name) != value:
            self._client.set_experiment_tag(self.id, name, value)
            self.tags = {**self.tags, name: value}

    def put(self, entry: MlflowRun, parent: str | None, *, again: bool) -> str:
        """Write `entry` to MLflow. A second call changes nothing.

        Args:
            parent: MLflow's id of the parent run.
            again: compare and send even what is stamped as imported.

        Returns:
            MLflow's id of the run.
        """
        run = self._find(entry.key)
        if run is not None and not again and run.data.tags.get(STAMP) == entry.stamp:
            return str(run.info.run_id)
        if run is not None and not entry.moves and _contradicts(run, entry):
            self._retire(run)
            run = None
        sent = 0 if run is None or again else _lines_tag(run)[0]
        tags = {**entry.tags, KEY: entry.key} | ({PARENT: parent} if parent else {})
        run = self._announce(run, entry, {**tags, LINES: _lines_text(sent, entry)})
        self._set_status(run, entry)
        self._send_params(run, entry)
        self._send_points(run, [*line_points(entry.lines, first=sent), *_final(run, entry)])
        self._send_files(run, entry)
        self._finish(run, {**tags, LINES: _lines_text(len(entry.lines), entry), STAMP: entry.stamp})
        return str(run.info.run_id)

    def runs(self, *, only_running: bool) -> Iterator[Run]:
        """Runs of the experiment that are not deleted."""
        query, token = "attributes.status = 'RUNNING'" if only_running else "", None
        while True:
            page = self._client.search_runs([self.id], query, max_results=1000, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def mark(self, run: Run, *, planned: bool, status: str) -> None:
        """Set whether `run` still belongs to the plan, and its status."""
        if run.data.tags.get("harness.planned") != (value := "yes" if planned else "no"):
            self._client.set_tag(run.info.run_id, "harness.planned", value)
        if run.info.status != status:
            self._client.set_terminated(run.info.run_id, status)

    def _create_experiment(self, name: str, location: str | None) -> MlflowExperiment:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_experiment(self._client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # another store may have created it on the same server in the meantime
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return found

    def _find(self, key: str) -> Run | None:
        """The run with that key, even if deleted. If stores raced and created several, the first one stays."""
        from mlflow.entities import ViewType

        query = f"tags.`{KEY}` = '{key}'"
        found = self._client.search_runs([self.id], query, ViewType.ALL)
        living = [run for run in found if run.data.tags.get(STAMP) != REPLACED]
        living.sort(key=lambda run: (run.info.lifecycle_stage, run.info.start_time))  # "active" before "deleted"
        for run in living[1:]:
            self._retire(run)
        return living[0] if living else None

    def _retire(self, run: Run) -> None:
        if run.info.lifecycle_stage == "deleted":
            self._client.restore_run(run.info.run_id)  # a deleted run cannot be written to
        self._client.set_tag(run.info.run_id, STAMP, REPLACED)
        self._client.delete_run(run.info.run_id)

    def _announce(self, run: Run | None, entry: MlflowRun, tags: Mapping[str, str]) -> Run:
        """The run to write to. Before writing, it records which lines it is going to hold."""
        if run is None:
            return self._client.create_run(self.id, start_time=entry.started_ms, tags=dict(tags), run_name=entry.name)
        if run.info.lifecycle_stage == "deleted":
            self._client.restore_run(run.info.run_id)
        if run.data.tags.get(LINES) != tags[LINES]:
            self._client.set_tag(run.info.run_id, LINES, tags[LINES])
        return run

    def _set_status(self, run: Run, entry: MlflowRun) -> None:
        if (run.info.status, run.info.run_name) != (entry.status, entry.name):
            self._client.update_run(run.info.run_id, status=entry.status, name=entry.name)
        if entry.ended_ms is not None and run.info.end_time != entry.ended_ms:
            self._client.set_terminated(run.info.run_id, entry.status, entry.ended_ms)

    def _send_params(self, run: Run, entry: MlflowRun) -> None:
        from mlflow.entities import Param

        missing = [Param(name, value) for name, value in entry.params.items() if name not in run.data.params]
        for first in range(0, len(missing), PARAMS_PER_BATCH):
            self._client.log_batch(run.info.run_id, params=missing[first : first + PARAMS_PER_BATCH])

    def _send_points(self, run: Run, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(run.info.run_id, metrics=metrics[first : first + METRICS_PER_BATCH])

    def _send_files(self, run: Run, entry: MlflowRun) -> None:
        if entry.data:
            self._client.log_inputs(run.info.run_id, datasets=[_dataset_input(entry.data)])
        for file in entry.files:
            self._client.log_artifact(run.info.run_id, str(file))
        if entry.model is not None:
            with model_folder(entry.model, run.info.run_id) as folder:
                self._client.log_artifacts(run.info.run_id, str(folder), FOLDER)

    def _finish(self, run: Run, tags: Mapping[str, str]) -> None:
        """Write all tags including the stamp, which marks the run as complete."""
        from mlflow.entities import RunTag

        for name in run.data.tags:
            if name.startswith("harness.") and name not in tags:
                self._client.delete_tag(run.info.run_id, name)
        self._client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _contradicts(run: Run, entry: MlflowRun) -> bool:
    """Whether `run` holds values that `entry` does not: MLflow cannot change logged values."""
    params, metrics = run.data.params, run.data.metrics
    if any(params.get(name, value) != value for name, value in entry.params.items()):
        return True
    _, intended, digest = _lines_tag(run)
    if intended and lines_digest(entry.lines[:intended]) != digest:
        return True
    was_done = run.data.tags.get("harness.state") == "done"
    changed = any(metrics.get(point.key, point.value) != point.value for point in entry.points)
    return was_done and (changed or bool(_gone(run, entry)))


def _gone(run: Run, entry: MlflowRun) -> set[str]:
    """Metrics that `run` holds and `entry` has no more: the plan asks for another evaluation of that name."""
    return set(run.data.metrics) - {point.key for point in [*entry.points, *line_points(entry.lines)]}


def _final(run: Run, entry: MlflowRun) -> list[Point]:
    """The final metrics to send: those of a run as they are, those that move only where they did, dated now.

    MLflow cannot take a metric back: one that is gone from a mean over seeds becomes NaN.
    """
    if not entry.moves:
        return list(entry.points)
    latest, now_ms = run.data.metrics, int(time.time() * 1000)
    moved = [point for point in entry.points if latest.get(point.key) != point.value]
    gone = [Point(key, math.nan, now_ms, 0) for key in sorted(_gone(run, entry)) if not math.isnan(latest[key])]
    return [*(replace(point, time_ms=now_ms) if point.key in latest else point for point in moved), *gone]


def _lines_text(sent: int, entry: MlflowRun) -> str:
    return f"{sent} {len(entry.lines)} {lines_digest(entry.lines)}"


def _lines_tag(run: Run) -> tuple[int, int, str]:
    tag = run.data.tags.get(LINES)
    if tag is None:
        return 0, 0, ""
    sent, intended, digest = tag.split()
    return int(sent), int(intended), digest


def _dataset_input(data: Input) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(data.name, data.digest, "harness", data.source, profile=data.profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
