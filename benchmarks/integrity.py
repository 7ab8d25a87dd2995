"""What integrity costs: sealing a run, and `harness verify` and `harness report` of a thousand runs.

    python benchmarks/integrity.py                # 350 arms x 3 seeds: 1,050 runs

The runs are made up, of the quickstart's size: weights of 1.4 MB, outcomes of 1,500 samples and 3,000 queries.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import INSTALLED, make, write_spec

from harness.runs.folder import RunFolder
from harness.runs.store import Store

WEIGHTS = 1_400_000
RUN_S = 20.0
"""The quickstart's shortest run, on one core."""


def complete(folder: RunFolder) -> float:
    """Give a run weights and outcomes, and seal it again; returns how long sealing took."""
    record = folder.record()
    random = np.random.default_rng(0)
    folder.weights.write_bytes(random.bytes(WEIGHTS))
    folder.outcomes.mkdir(exist_ok=True)
    for one in record.evaluations:
        rows = 1500 if one.task == "zeroshot_classification" else 3000
        columns = {"key": [f"{row:06d}" for row in range(rows)], "rank": random.integers(1, 30, rows)}
        columns |= {"label": random.integers(0, 36, rows), "direction": ["image_retrieval"] * rows}
        table = pa.table(columns).replace_schema_metadata({"set": one.set, "protocol_id": one.protocol_id})
        pq.write_table(table, folder.outcomes / f"{one.set}.{one.protocol_id}.parquet")
    began = time.perf_counter()
    folder.finish(record)
    return time.perf_counter() - began


def timed(spec: Path, verb: str) -> tuple[float, float]:
    """Seconds of `harness VERB`, by the clock and of processors: the machine may be shared."""
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "harness", verb, spec.name]
    environment = {**INSTALLED, "PYTHONPATH": os.getcwd(), "HARNESS_TRACKING_URI": "none"}
    subprocess.run(command, cwd=spec.parent, env=environment, stdout=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=350)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        spec = write_spec(Path(scratch), arguments.arms)
        (spec.parent / "harness.toml").write_text('store = "store"\n')
        store = Store(spec.parent / "store")
        runs = make(spec, store)
        seals = [complete(folder) for folder in store.runs()]
        mean = sum(seals) / len(seals)
        print(f"seal      {1000 * mean:6.1f} ms a run: {100 * mean / RUN_S:.3f} % of a run of {RUN_S:.0f} s")
        for verb in ("report", "report", "verify"):
            wall, cpu = timed(spec, verb)
            print(f"{verb:9} {wall:6.1f} s ({cpu:.1f} s of processors) for {runs:,} runs", flush=True)


if __name__ == "__main__":
    main()
