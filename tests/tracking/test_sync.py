from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import TrackingError
from harness.runs.names import claim_name, own_name
from harness.runs.record import StepMetrics
from harness.runs.store import Store
from harness.tracking import SyncResult, sync
from tests.tracking.conftest import Place
from tests.tracking.world import ARMS, START, begin, fail, finish, finish_all, plan_of, record_of, rows, sqlite_uri

STATUS = """SELECT runs.status FROM runs JOIN tags USING (run_uuid)
    WHERE lifecycle_stage = 'active' AND tags.key = 'harness.key' AND tags.value = ?"""
TAG = """SELECT wanted.value FROM tags JOIN runs USING (run_uuid) JOIN tags wanted USING (run_uuid)
    WHERE lifecycle_stage = 'active' AND tags.key = 'harness.key' AND tags.value = ? AND wanted.key = ?"""


def status(place: Place, run: str) -> str:
    ((found,),) = rows(place.database, STATUS, run)
    return str(found)


def tag(place: Place, run: str, name: str) -> str | None:
    found = rows(place.database, TAG, run, name)
    return str(found[0][0]) if found else None


def test_the_database_holds_what_the_files_say(finished: Place) -> None:
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(imported=5)
    content = finished.content()
    for run_id in finished.plan.runs:
        folder = finished.store.run(run_id)
        lines = [StepMetrics.model_validate_json(line) for line in folder.metrics.read_text().splitlines()]
        expected = {
            (name.replace("@", "_at_"), line.step, int(line.time * 1000), value)
            for line in lines
            for name, value in line.values.items()
        }
        stored = {tuple(row[1:]) for row in content["metrics"] if row[0] == run_id}
        assert expected <= stored
        assert {row[2] for row in stored - expected} == {int((START + 60) * 1000)}
        record = folder.record()
        latest = {row[1]: row[3] for row in content["latest"] if row[0] == run_id}
        assert latest["shapes/acc1"] == record.evaluations[0].metrics["acc1"].value
        assert (folder.record_file.name, folder.record_file.read_text()) in content["files"]
        assert (folder.spec.name, folder.spec.read_text()) in content["files"]
    teacher = next(run for run in finished.plan.runs.values() if run.role == "teacher")
    assert {child for child, _ in content["parents"]} == set(finished.plan.runs) - {teacher.id}
    assert len({parent for _, parent in content["parents"]}) == 2
    assert len(content["inputs"]) == 1
    assert content["used"] == [(5,)]
    assert {row[2] for row in content["runs"]} == {"FINISHED"}


def test_importing_twice_changes_nothing(finished: Place) -> None:
    sync(finished.plan, finished.store, finished.uri)
    before = finished.content()
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(unchanged=5)
    assert sync(finished.plan, finished.store, finished.uri, again=True) == SyncResult(imported=5)
    assert finished.content() == before
    assert rows(finished.database, "SELECT count(*) FROM runs") == [(7,)]


def test_specs_of_one_name_have_experiments_of_their_own(finished: Place) -> None:
    """Two files of one name in a store, as after copying a project's folder."""
    stored = "SELECT name FROM experiments WHERE name != 'Default' ORDER BY experiment_id"
    plan = plan_of(seeds=1)
    for folder, names in (("a", ["quickstart"]), ("b", ["quickstart", "quickstart (b)"])):
        plan.file = finished.root / folder / "quickstart.toml"
        plan.file.parent.mkdir()
        plan.file.touch()
        assert sync(plan, finished.store, finished.uri) == SyncResult(imported=3)
        assert sync(plan, finished.store, finished.uri) == SyncResult(unchanged=3)
        assert [name for (name,) in rows(finished.database, stored)] == names


def test_the_experiment_of_a_spec(tmp_path: Path) -> None:
    store, (first, second, third) = Store(tmp_path / "store"), (tmp_path / one / "q.toml" for one in ("a", "b", "c/b"))
    store.root.mkdir()
    for file, name in ((first, "q"), (second, "q (b)"), (third, "q (b 2)"), (second, "q (b)"), (first, "q")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert own_name("q", file, store) == name
        claim_name(name, file, store)
    assert own_name("q", None, store) == "q"
    moved = first.rename(tmp_path / "q.toml")
    assert own_name("q", moved, store) == "q"


def test_nothing_new_needs_no_mlflow(finished: Place) -> None:
    sync(finished.plan, finished.store, finished.uri)
    code = f"""
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from harness.runs.store import Store
from harness.tracking import sync
from tests.tracking.world import plan_of
print(sync(plan_of(), Store(Path({str(finished.store.root)!r})), {finished.uri!r}))
assert "mlflow" not in sys.modules and "torch" not in sys.modules and "sqlalchemy" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "unchanged=5" in result.stdout


def test_nothing_is_created_for_a_plan_that_has_not_begun(tmp_path: Path) -> None:
    assert sync(plan_of(), Store(tmp_path / "store"), sqlite_uri(tmp_path)) == SyncResult()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fail_at", [0, 1, 3, 6, 12, 25])
def test_an_import_that_breaks_anywhere_is_completed_by_the_next(
    finished: Place, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    calls = 0
    for method in ("create_run", "set_terminated", "log_batch", "set_tag", "log_inputs", "log_artifact", "update_run"):
        real = getattr(MlflowClient, method)

        def breaking(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > fail_at:
                raise MlflowException("connection lost")
            return _real(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, method, breaking)
    with pytest.raises(TrackingError, match="connection lost"):
        sync(finished.plan, finished.store, finished.uri)
    monkeypatch.undo()
    sync(finished.plan, finished.store, finished.uri)
    assert finished.content() == undisturbed


def test_a_run_that_resumed_looks_like_one_that_was_never_stopped(finished: Place) -> None:
    """Lines after the checkpoint are written again with later times: those of before must not stay beside them."""
    folder = finished.store.run(finished.plan.cells["clip", 0])
    folder.record_file.unlink()
    sync(finished.plan, finished.store, finished.uri)
    assert status(finished, folder.id) == "KILLED"
    folder.restore_metrics(190, None)
    begin(folder, finished.plan, 30, first=20, start=START + 100)
    folder.finish(record_of(folder.id, ended=START + 200))
    sync(finished.plan, finished.store, finished.uri)
    resumed = finished.content()
    finished.database.unlink()
    shutil.rmtree(finished.root / "mlflow-artifacts")
    sync(finished.plan, finished.store, finished.uri)
    never_stopped = finished.content()
    assert [row for row in resumed["runs"] if row[0] == folder.id] != []
    for table in ("runs", "params", "metrics", "latest", "tags", "parents"):
        mine = [[row for row in content[table] if row[0] == folder.id] for content in (resumed, never_stopped)]
        assert mine[0] == mine[1]
    assert status(finished, folder.id) == "FINISHED"


def test_a_run_is_followed_through_its_life_in_one_mlflow_run(place: Place) -> None:
    folder = place.store.run(place.plan.cells["clip", 0])
    begin(folder, place.plan, 3)
    with folder.claimed():
        sync(place.plan, place.store, place.uri)
        assert status(place, folder.id) == "RUNNING"
    sync(place.plan, place.store, place.uri)
    assert status(place, folder.id) == "KILLED"
    assert tag(place, folder.id, "harness.cause") == "interrupted"
    fail(folder, place.plan, "out_of_memory", "needs 12 GB")
    sync(place.plan, place.store, place.uri)
    assert status(place, folder.id) == "FAILED"
    assert tag(place, folder.id, "harness.message") == "needs 12 GB"
    assert {file for file, _ in place.content()["files"]} == {"spec.json", "failure.json"}
    folder.finish(record_of(folder.id))
    sync(place.plan, place.store, place.uri)
    assert status(place, folder.id) == "FINISHED"
    assert tag(place, folder.id, "harness.cause") == "completed"
    assert tag(place, folder.id, "harness.message") is None
    assert rows(place.database, "SELECT count(*) FROM runs") == [(2,)]  # the arm and the run


def test_a_new_evaluation_is_added_and_a_changed_one_replaces_the_run(finished: Place) -> None:
    sync(finished.plan, finished.store, finished.uri)
    folder = finished.store.run(finished.plan.cells["clip", 0])
    total = "SELECT lifecycle_stage, count(*) FROM runs GROUP BY 1 ORDER BY 1"
    latest = """SELECT latest_metrics.value FROM latest_metrics JOIN runs USING (run_uuid) JOIN tags USING (run_uuid)
        WHERE lifecycle_stage = 'active' AND tags.key = 'harness.key' AND tags.value = ? AND latest_metrics.key = ?"""
    folder.finish(record_of(folder.id, acc5=0.75))
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(imported=1, unchanged=4)
    assert rows(finished.database, latest, folder.id, "shapes/acc5") == [(0.75,)]
    assert rows(finished.database, total) == [("active", 7)]
    folder.finish(record_of(folder.id, acc5=0.5))
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(imported=1, unchanged=4)
    assert rows(finished.database, latest, folder.id, "shapes/acc5") == [(0.5,)]
    assert rows(finished.database, total) == [("active", 7), ("deleted", 1)]


def test_means_of_an_arm_follow_its_seeds(place: Place) -> None:
    for seed in (0, 1):
        finish(place.store.run(place.plan.cells["clip", seed]), place.plan, seed=seed)
        sync(place.plan, place.store, place.uri)
        arm = {row[1]: row[3] for row in place.content()["latest"] if row[0].startswith("arm:")}
        values = [0.25 + number / 3 for number in range(seed + 1)]
        assert arm["shapes/acc1"] == pytest.approx(sum(values) / len(values), rel=1e-12)
        assert arm["seeds"] == seed + 1


def test_an_edited_ablation_keeps_its_old_runs_apart(finished: Place) -> None:
    sync(finished.plan, finished.store, finished.uri)
    old = finished.plan.cells["mined", 0]
    clip = finished.plan.cells["clip", 0]
    changed = plan_of({"clip": {}, "mined": {**ARMS["mined"], "mining": {"kind": "threshold", "image_text": 0.5}}})
    finish_all(changed, finished.store)
    assert sync(changed, finished.store, finished.uri) == SyncResult(imported=2, unchanged=3)
    assert [tag(finished, run, "harness.planned") for run in (old, clip)] == ["no", "yes"]
    assert tag(finished, changed.cells["mined", 0], "harness.planned") == "yes"
    sync(finished.plan, finished.store, finished.uri)
    assert [tag(finished, run, "harness.planned") for run in (old, clip)] == ["yes", "yes"]
    assert tag(finished, changed.cells["mined", 0], "harness.planned") == "no"


def test_a_run_that_died_after_its_arm_was_dropped_does_not_stay_running(place: Place) -> None:
    finish(place.store.run(place.plan.cells["clip", 0]), place.plan)
    dropped = place.store.run(place.plan.cells["mined", 0])
    begin(dropped, place.plan, 3)
    without = plan_of({"clip": {}})
    with dropped.claimed():
        sync(place.plan, place.store, place.uri)
        sync(without, place.store, place.uri)
        assert status(place, dropped.id) == "RUNNING"
    finish(place.store.run(without.cells["clip", 1]), without)
    sync(without, place.store, place.uri)
    assert status(place, dropped.id) == "KILLED"
    assert not [row for row in place.content()["runs"] if row[2] == "RUNNING"]


def test_what_a_user_deleted_comes_back_only_on_demand_and_never_twice(finished: Place) -> None:
    from mlflow.tracking import MlflowClient

    sync(finished.plan, finished.store, finished.uri)
    before = finished.content()
    client = MlflowClient(tracking_uri=finished.uri)
    key = "SELECT run_uuid FROM tags WHERE key = 'harness.key' AND value = ?"
    ((mlflow_id,),) = rows(finished.database, key, finished.plan.cells["clip", 0])
    client.delete_run(mlflow_id)
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(unchanged=5)
    assert client.get_run(mlflow_id).info.lifecycle_stage == "deleted"
    sync(finished.plan, finished.store, finished.uri, again=True)
    assert finished.content() == before
    # a whole experiment that was deleted comes back by itself: nothing of it can be seen
    client.delete_experiment(client.get_run(mlflow_id).info.experiment_id)
    sync(finished.plan, finished.store, finished.uri)
    assert finished.content() == before
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(unchanged=5)


def test_a_time_limit_leaves_the_rest_for_the_next_time(finished: Place, undisturbed: dict[str, Any]) -> None:
    assert sync(finished.plan, finished.store, finished.uri, limit_s=0) == SyncResult(remaining=5)
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(imported=5)
    assert finished.content() == undisturbed


def test_a_damaged_record_is_reported_and_keeps_no_other_back(finished: Place) -> None:
    folder = finished.store.run(finished.plan.cells["clip", 0])
    whole = folder.record_file.read_text()
    folder.record_file.write_text("{")
    result = sync(finished.plan, finished.store, finished.uri)
    assert (result.imported, result.unchanged, result.remaining) == (4, 0, 0)
    assert len(result.skipped) == 1
    assert str(folder.record_file) in result.skipped[0]
    folder.record_file.write_text(whole)
    assert sync(finished.plan, finished.store, finished.uri) == SyncResult(imported=1, unchanged=4)


def test_pages_of_the_report_are_attached_once_and_follow_the_runs(finished: Place, tmp_path: Path) -> None:
    page = tmp_path / "quickstart.html"
    page.write_text("<p>first")
    sync(finished.plan, finished.store, finished.uri, pages=[page])
    assert ("quickstart.html", "<p>first") in finished.content()["files"]
    assert sync(finished.plan, finished.store, finished.uri, pages=[page]) == SyncResult(unchanged=5)
    folder = finished.store.run(finished.plan.cells["clip", 0])
    folder.finish(record_of(folder.id, acc5=0.75))
    page.write_text("<p>second")
    sync(finished.plan, finished.store, finished.uri, pages=[page])
    assert [text for name, text in finished.content()["files"] if name == page.name] == ["<p>second"]


def test_long_runs_arrive_whole(place: Place) -> None:
    """More points than MLflow takes in one request."""
    folder = place.store.run(place.plan.cells["clip", 0])
    finish(folder, place.plan, lines=1100)
    sync(place.plan, place.store, place.uri)
    counted = [row for row in place.content()["metrics"] if row[0] == folder.id and row[1] in ("loss", "lr")]
    assert len(counted) == 2200
    assert len({(row[1], row[2]) for row in counted}) == 2200


def test_paths_with_spaces_and_percent_signs_work(finished: Place, empty_database: Path, tmp_path: Path) -> None:
    root = tmp_path / "my runs 100%"
    root.mkdir()
    finished.database.rename(root / "mlflow.db")
    uri = sqlite_uri(root).replace("%", "%25")
    assert sync(finished.plan, finished.store, uri) == SyncResult(imported=5)
    assert sync(finished.plan, finished.store, uri) == SyncResult(unchanged=5)
    assert len(list((root / "mlflow-artifacts").rglob("record.json"))) == 5


def test_the_environment_and_loggers_are_as_before(finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import os

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, level = dict(os.environ), logging.getLogger("urllib3").level
    sync(finished.plan, finished.store, finished.uri)
    assert dict(os.environ) == before
    assert logging.getLogger("urllib3").level == level
    assert not Path("mlflow.db").exists()
    assert not Path("mlruns").exists()


def test_a_server_that_answers_only_for_its_health_is_given_up(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")

    class Stalling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                gone.wait()
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    gone = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackingError, match=r"did not accept the records .*`harness sync SPEC` continues"):
            sync(finished.plan, finished.store, f"http://127.0.0.1:{server.server_port}")
    finally:
        gone.set()
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_eight_processes_that_race_on_a_missing_database_make_one(finished: Place, undisturbed: dict[str, Any]) -> None:
    finished.database.unlink()
    results = importers(finished, 8)
    assert sorted(json.loads(result) for result in results) == [[0, 5]] * 7 + [[5, 0]]
    assert finished.content() == undisturbed


def importers(place: Place, count: int) -> list[str]:
    """What each of `count` processes that import at once did: JSON of imported and unchanged."""
    code = f"""
import importlib
import json
from pathlib import Path
from harness.runs.store import Store
from tests.tracking.world import plan_of
module = importlib.import_module("harness.tracking.sync")
module.LOCK_WAIT_S = 300
result = module.sync(plan_of(), Store(Path({str(place.store.root)!r})), {place.uri!r})
print(json.dumps([result.imported, result.unchanged]))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * count, [error for _, error in outputs]
    return [output for output, _ in outputs]


def test_a_search_is_one_run_with_its_trials_below(finished: Place, tmp_path: Path) -> None:
    page = tmp_path / "search.html"
    page.write_text("<p>best</p>")
    for _ in range(2):
        sync(finished.plan, finished.store, finished.uri, pages=[page], under_report=True)
    named = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND name = 'quickstart'"
    ((top,),) = rows(finished.database, named)
    children = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?"
    assert rows(finished.database, children, str(top)) == [(len(ARMS),)]
    assert rows(finished.database, "SELECT count(*) FROM runs") == [(8,)]
    assert ("search.html", "<p>best</p>") in finished.content()["files"]
