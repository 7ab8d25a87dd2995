"""`harness search` from a shell: real training on a small world, in the background, looked at, gone on with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.node.small import CONFIG

BASE = """
data = { kind = "shapes", train_samples = 96, test_samples = 36 }
model = { name = "small", config = "model.json" }
train = { duration = "8 steps", global_batch_size = 16, schedule = "constant" }
evaluation = { sets = ["shapes"], templates = ["a photo of a {c}"], every = "2 steps" }
"""
SEARCH = """
question = "Which learning rate?"
experiment = "base.toml"
finish = 1
budget = { trials = 4 }
objectives = [{ metric = "shapes/acc1" }]
sampler = { kind = "random" }
pruner = { kind = "asha" }
[space]
"train.optimiser.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }
"train.duration" = { kind = "choice", of = ["7 steps", "8 steps"] }
[confirm]
seeds = 2
"""
LONG_S = 280


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "harness.toml").write_text('store = "store"\n')
    (tmp_path / "model.json").write_text(json.dumps(CONFIG))
    (tmp_path / "base.toml").write_text(BASE)
    file = tmp_path / "lr.toml"
    file.write_text(SEARCH)
    return file


def harness(spec: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, cwd=spec.parent, capture_output=True, text=True, timeout=LONG_S, check=False)


@pytest.mark.slow
def test_a_search_in_the_background_is_watched_to_its_end(spec: Path) -> None:
    begun = harness(spec, "search", spec, "--detach", "--jobs", 1, "--export", "winner.toml")
    assert begun.returncode == 0, begun.stderr
    assert f"harness status {spec} --watch`" in begun.stdout
    log = spec.parent / "store/search-lr.log"
    while harness(spec, "status", spec).returncode:  # before its first configuration
        assert "Traceback" not in log.read_text()
    watched = harness(spec, "status", spec, "--watch")
    assert watched.returncode == 0, watched.stderr
    *_, last = watched.stdout.split("\nrun ")
    assert len(re.findall(r"configuration \d", last)) == 4
    until = time.monotonic() + LONG_S
    while "The winner: " not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    again = harness(spec, "search", spec, "--jobs", 1)
    assert again.returncode == 0, again.stderr
    assert "Best at full length: shapes/acc1" in again.stdout
    best = tomllib.loads((spec.parent / "winner.toml").read_text())
    assert 1e-4 <= best["train"]["optimiser"]["lr"] <= 1e-1


def test_a_search_that_has_not_begun_is_one_sentence_with_its_file(spec: Path) -> None:
    looked = harness(spec, "status", spec)
    assert looked.returncode != 0
    assert looked.stderr.count("\n") == 1
    assert str(spec) in looked.stderr
    assert "has no configuration yet" in looked.stderr


def test_a_bad_search_is_refused_before_it_goes_into_the_background(spec: Path) -> None:
    spec.write_text(SEARCH.replace("train.optimiser.lr", "train.optimiser.lrr"))
    refused = harness(spec, "search", spec, "--detach")
    assert refused.returncode != 0
    assert "train.optimiser.lrr" in refused.stderr
    assert not (spec.parent / "store/search-lr.log").exists()
