"""The command: which parts run, within what time, and what becomes of their figures."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .bench import Bench
from .loading import data
from .numbers import environment, kernel, losses, mining
from .runs import ablation, processes, resume, tests
from .steps import p1, p2, variants
from .table import PAGE, ROOT, with_table

LIMITS = {
    "environment": 60,
    "kernel": 90,
    "losses": 120,
    "mining": 90,
    "p2": 120,
    "p1": 240,
    "variants": 420,
    "data": 240,
    "resume": 180,
    "ablation": 400,
    "processes": 240,
    "tests": 400,
}
"""The parts in their order, and the most seconds that each may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Everything that needs a GPU, by one command.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU, in this process")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=[], help="these parts, measured again")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "build" / "gpu")))
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for the whole call")
    parser.add_argument("--table", action="store_true", help="write the table of docs/performance.md and end")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print("RESULT " + json.dumps(result_of(options.part, smoke=options.smoke)))
        return 0
    file = options.out / ("smoke.json" if options.smoke else "figures.json")
    figures: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not options.smoke else {}
    if not options.table:
        if not options.smoke and not torch.cuda.is_available():
            print("there is no GPU that torch can use here; --smoke tries every part on the CPU", file=sys.stderr)
            return 1
        figures = measured(figures, file, options)
    if not options.smoke:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return int(any(not one["ok"] for one in figures.values()))


def measured(figures: dict[str, Any], file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`figures` with those of the parts that it lacks, written to `file` after each."""
    begun = time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    for part in options.only or [name for name in LIMITS if not figures.get(name, {}).get("ok")]:
        left = options.budget - (time.monotonic() - begun)
        if left < 20:
            print(f"{part}: no time left; call again")
            continue
        started = time.monotonic()
        figures[part] = result_of(part, smoke=True) if options.smoke else _apart(part, min(LIMITS[part], left))
        figures[part]["wall_s"] = round(time.monotonic() - started, 1)
        said = "ok" if figures[part]["ok"] else f"FAILED: {figures[part].get('error', figures[part])}"
        print(f"{part:12} {figures[part]['wall_s']:6.1f} s  {said}", flush=True)
        file.write_text(json.dumps(figures, indent=1))
    return figures


def result_of(part: str, *, smoke: bool) -> dict[str, Any]:
    """What a part measures, in this process; `ok` says whether it worked, `machine` where."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench.here(Path(folder), smoke=smoke)
            found: dict[str, Any] = {"ok": True, "machine": bench.machine} | PARTS[part](bench)
            return found
    except Exception as error:
        last = traceback.format_exc().splitlines()[-12:]
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500], "trace": last}


def _apart(part: str, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HARNESS_TRACKING_URI": "none"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env=environment)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"took more than {limit_s:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return dict(json.loads(lines[-1].removeprefix("RESULT ")))
    return {"ok": False, "error": f"exit status {done.returncode}: {(done.stdout + done.stderr)[-500:]}"}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part
    for part in (environment, kernel, losses, mining, p2, p1, variants, data, resume, ablation, processes, tests)
}
