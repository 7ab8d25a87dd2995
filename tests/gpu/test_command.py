"""`python -m benchmarks.gpu`: its table, and that every part of it runs, tiny, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from harness.base.version import PACKAGE

gpu, tables = import_module("benchmarks.gpu.command"), import_module("benchmarks.gpu.table")
ROOT = PACKAGE.parent


def test_a_line_for_each_target() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    lines = page.split(tables.BEGIN)[1].split(tables.END)[0].strip().splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [row.what for row in tables.ROWS]
    measured = {"p2": {"ok": True, "machine": "H100", "mine_ms": 1.5, "loss_ms": 2.0, "peak_gb": 0.25}}
    assert "| <= 4 ms | 3.5 ms | H100 |" in tables.table(measured)
    assert tables.table({"p2": measured["p2"] | {"ok": False}}) == tables.table({})
    assert tables.table({"p2": {"ok": True, "machine": "H100"}}) == tables.table({})
    assert tables.with_table(tables.with_table(page, measured), {}) == tables.with_table(page, {})


def test_parts_have_limits_and_bounds() -> None:
    assert list(gpu.PARTS) == list(gpu.LIMITS)
    assert max(gpu.LIMITS.values()) <= 600


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 1
    assert "there is no GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_the_smoke_runs_every_part(tmp_path: Path) -> None:
    """Without the packages that a bare machine lacks and that `make wheels` does not gather."""
    absent = "scipy sklearn matplotlib mlflow typer click tomlkit submitit optuna psutil webdataset clip_benchmark rich"
    lines = [
        f"import sys; sys.modules.update(dict.fromkeys({absent.split()!r}))",
        "import benchmarks.gpu.command as gpu",
    ]
    code = "\n".join([*lines, f"sys.argv = ['gpu', '--smoke', '--out', {str(tmp_path)!r}]", "sys.exit(gpu.main())"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert list(json.loads((tmp_path / "smoke.json").read_text())) == list(gpu.LIMITS)
