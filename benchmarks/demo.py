"""Times `make demo` as a whole process, with an empty store each time: `python benchmarks/demo.py`, machine idle."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]


def timed(command: list[str]) -> float:
    """Seconds that a command takes from its start to its exit, with a store of its own.

    Raises:
        CalledProcessError: it failed; the error has its output.
    """
    with tempfile.TemporaryDirectory() as store:
        began = time.perf_counter()
        environment = {**os.environ, "HARNESS_STORE": store}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="number of demos (default 5)")
    times = parser.parse_args().times
    if times < 1:
        parser.error("--times: give at least 1")
    print(f"load before the first demo: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    found = []
    for place in range(times):
        found.append(timed(["make", "demo"]))
        print(f"demo {place + 1}: {found[-1]:.0f} s", flush=True)
    print(f"median {median(found):.0f} s, range {min(found):.0f} to {max(found):.0f} s of {times}")


if __name__ == "__main__":
    main()
