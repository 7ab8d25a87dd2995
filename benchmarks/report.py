"""How long a report of a thousand runs takes, from the command to the page.

    python -m benchmarks.report                  # 350 arms x 3 seeds: 1,050 runs
    python -m benchmarks.report --arms 3000

The runs' records and curves are made up, written as runs write them; the commands are those of a user, started from
nothing, so that imports and reading every record count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness.config.load import load
from harness.data.sources.inspection import inspect_data
from harness.planning.plan import make_plan
from harness.runs.store import Store
from tests.reporting import made

FORMATS = ("terminal", "html", "md", "latex", "csv", "json")
DECAYS = 7
REPEATS = 3
INSTALLED = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
"""The first report leaves compiled modules behind, as any installation has them."""


def write_spec(folder: Path, arms: int) -> Path:
    """A grid of learning rates and weight decays with at least `arms` arms, over few drawn pictures."""
    rates = [round(1e-4 * 1.05**place, 9) for place in range(-(-arms // DECAYS))]
    decays = [round(0.05 * place, 2) for place in range(DECAYS)]
    experiment = {"kind": "shapes", "train_samples": 256}
    lines = [
        'question = "Which learning rate and weight decay?"',
        f'baseline = "train.optimiser.lr={rates[0]}, train.optimiser.weight_decay={decays[0]}"',
        "seeds = 3",
        'primary = "shapes/acc1"',
        'secondary = ["shapes_retrieval/image_retrieval_recall@1"]',
        "[axes]",
        f'"train.optimiser.lr" = {rates}',
        f'"train.optimiser.weight_decay" = {decays}',
        "[experiment.data]",
        *(f"{name} = {json.dumps(one)}" for name, one in experiment.items()),
        "[experiment.train]",
        'duration = "300 steps"',
        "global_batch_size = 128",
        "[experiment.evaluation]",
        'sets = ["shapes", "shapes_retrieval"]',
    ]
    spec = folder / "grid.toml"
    spec.write_text("\n".join(lines))
    return spec


def make(spec: Path, store: Store) -> int:
    """Records and curves of every run."""
    plan = make_plan(load(spec), name=spec.stem, where=str(spec), inspect=lambda data: inspect_data(data, store.data))
    made.PLANNED.update(plan.runs)
    (made.DATA,) = plan.data.values()
    random = np.random.default_rng(0)
    made.fill(plan, store, {arm.name: float(random.uniform(0.2, 0.7)) for arm in plan.arms})
    return len(plan.cells)


def measured(spec: Path, format: str) -> tuple[float, float]:
    """Wall and CPU seconds of the fastest of a few reports."""
    options = [] if format == "terminal" else ["--format", format]
    command = [sys.executable, "-m", "harness", "report", str(spec), *options]
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=spec.parent, env=INSTALLED, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{' '.join(command)} failed")
        times.append((time.perf_counter() - start, usage.ru_utime + usage.ru_stime))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arms", type=int, default=350)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "harness.toml").write_text('store = "store"\ntracking_uri = "none"\n')
        runs = make(write_spec(folder, options.arms), Store(folder / "store"))
        print(f"{runs:,} runs; {os.cpu_count()} cores\n\n| format | wall s | CPU s |\n|---|---|---|")
        for format in FORMATS:
            wall, cpu = measured(folder / "grid.toml", format)
            print(f"| {format} | {wall:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
