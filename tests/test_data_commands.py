"""The commands of docs/data.md, from raw and partly damaged shards to a training run, on a small hand-made set."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs.store import Store
from tests.data.hand_made import make

DOCS = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
MORE = {"run": ["--jobs", "1"], "analyze": ["--queries", "100"]}
"""Options that make the documented commands short enough for a test."""


def documented() -> list[list[str]]:
    """The commands of the page's first block, in order, without their comments."""
    block = re.search(r"```sh\n(.*?)```", DOCS, re.DOTALL)
    assert block
    return [shlex.split(line, comments=True)[1:] for line in block[1].splitlines()]


@pytest.mark.slow
def test_from_raw_shards_to_a_training_run(tmp_path: Path) -> None:
    make(tmp_path, samples=600, batch=16, steps=4)

    def harness(*words: str) -> str:
        environment = {**os.environ, "HARNESS_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "harness", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = {}
    for words in documented():
        verb = words[1] if words[0] == "data" else " ".join(words[:2])
        said[verb] = harness(*words, *MORE.get(verb.split()[0], []))
    assert list(said) == ["check", "caption", "run teacher.toml", "features", "analyze", "run mine.toml"]
    for expected in ("image damaged", "shard is truncated", "data.quarantine", "captions/tiny"):
        assert expected in said["check"]  # captions/tiny is named in the spec, and not made yet
    assert "798 samples captioned" in said["caption"]
    assert "done" in said["features"]
    page = Path(said["analyze"].split()[-1])
    assert "<svg" in page.read_text()
    told = json.loads(page.with_suffix(".json").read_text())
    assert set(told["sources"]) == {"raw", "inside", "beside", "tiny"}
    assert "shapes/acc1" in said["run mine.toml"]
    assert "h" in harness("data", "features", "mine.toml", "--estimate")
    harness("data", "features", "mine.toml", "--verify")
    harness("data", "features", "mine.toml", "--shard", "3/32")
    harness("data", "fetch", "mine.toml")
    harness("data", "manifest", "mine.toml", "--out", "manifest.json")
    done = {*said, "fetch", "manifest", "openclipart"}  # the last in tests/data/test_openclipart.py
    assert set(re.findall(r"^\| `harness data (\w+) ", DOCS, re.MULTILINE)) <= done
    manifest = json.loads(harness("data", "manifest", "mine.toml"))
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["samples"] == 798
    assert manifest["sources"]["tiny"]["coverage"] == 1
    assert manifest["rejected"]["quarantined"] == 1
    assert all(run.record().data.samples == 798 for run in Store(tmp_path / "store").runs())
