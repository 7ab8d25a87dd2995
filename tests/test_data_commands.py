"""The commands of docs/data.md, from raw and partly damaged shards to a training run, on a small hand-made set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs.store import Store
from tests.data.hand_made import make


@pytest.mark.slow
def test_from_raw_shards_to_a_training_run(tmp_path: Path) -> None:
    make(tmp_path, samples=600, batch=16, steps=4)

    def harness(*words: str) -> str:
        environment = {**os.environ, "HARNESS_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "harness", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    checked = harness("data", "check", "mine.toml", "--out", "checked")
    assert "image damaged" in checked
    assert "shard is truncated" in checked
    assert "data.quarantine" in checked
    assert "captions/tiny" in checked  # named in the spec, and not made yet
    captioned = harness("data", "caption", "mine.toml", "captioner.toml", "--out", "captions/tiny")
    assert "798 samples captioned" in captioned
    harness("run", "teacher.toml", "--jobs", "1")
    assert "done" in harness("data", "features", "mine.toml")
    page = Path(harness("data", "analyze", "mine.toml", "--queries", "100").split()[-1])
    assert "<svg" in page.read_text()
    told = json.loads(page.with_suffix(".json").read_text())
    assert set(told["sources"]) == {"raw", "inside", "beside", "tiny"}
    ran = harness("run", "mine.toml", "--jobs", "1")
    assert "shapes/acc1" in ran
    manifest = json.loads(harness("data", "manifest", "mine.toml"))
    assert manifest["samples"] == 798
    assert manifest["sources"]["tiny"]["coverage"] == 1
    assert manifest["rejected"]["quarantined"] == 1
    assert all(run.record().data.samples == 798 for run in Store(tmp_path / "store").runs())
