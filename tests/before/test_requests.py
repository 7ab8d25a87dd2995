"""What a node of the old code meets when the current code has written the request of its run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.before.old import REPOSITORY, SPECS, Harness, runs
from tests.before.test_ids import shipped

WRITE = """
import sys
from pathlib import Path
from harness.planning.workspace import Project
from harness.runs.request import Request

for file in sys.argv[1:]:
    project = Project.at(Path(file).parent)
    plan = project.plan(file, provisional=True)
    project.store.begin()
    for run in plan.runs.values():
        one = run.experiment
        if one.loss.kind == "slip" or one.train.augment.kind == "declip" or getattr(one.teacher, "resize", None):
            continue  # the old code refuses these
        request = Request.of(run.experiment, run.id, run.teacher, project.settings, 1)
        project.store.run(run.id).prepare(run.identity, request.written())
"""
READ = """
import json, sys
from pathlib import Path
from harness.identity import identify
from harness.request import read_request
from harness.store import Store

found = {}
for folder in Store(Path(sys.argv[1])).runs():
    one = read_request(folder).experiment
    stated = folder.resolved()
    folder.check(identify(one, fingerprint=stated["data"]["fingerprint"], teacher=stated.get("teacher")))
    found[folder.id] = identify(one, fingerprint=stated["data"]["fingerprint"], teacher=stated.get("teacher")).id
print(json.dumps(found))
"""


def test_the_old_code_reads_requests_of_the_current_code(old: Harness, current: Harness, tmp_path: Path) -> None:
    specs = [str(SPECS / "ablation.toml"), *(str(REPOSITORY / file) for file in shipped())]
    store = tmp_path / "store"
    current.python(store, WRITE, *specs)
    assert (store / "store.json").exists()
    read = json.loads(old.python(store, READ, str(store)))
    assert len(read) > 100
    assert read == {run: run for run in runs(store)}


def test_the_current_code_marks_an_old_store_when_it_writes(old: Harness, current: Harness, tmp_path: Path) -> None:
    """The old code does not know the version and goes on working."""
    store = tmp_path / "store"
    old.command(store, "data", "check", "ablation.toml")
    before = sorted(file.name for file in store.iterdir())
    assert "store.json" not in before
    current.command(store, "plan", "ablation.toml")
    current.command(store, "status", "ablation.toml")
    current.command(store, "data", "check", "ablation.toml")
    assert json.loads((store / "store.json").read_text()) == {"version": 1}
    old.command(store, "data", "check", "ablation.toml")
    assert json.loads((store / "store.json").read_text()) == {"version": 1}
