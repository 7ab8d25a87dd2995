"""The package as it was at commit b568cb1, run as a command beside the current one.

`harness-b568cb1.tar.xz` is `git archive b568cb1 harness`. The tests here use the current code through its command and
through the files of a store only, so that they do not depend on the names of its modules.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ARCHIVE = HERE / "harness-b568cb1.tar.xz"
SPECS = HERE / "specs"
REPOSITORY = HERE.parents[1]
PATIENCE_S = 900.0
TIMINGS = {"images_per_s", "data_wait", "mfu", "peak_memory_gb"}
"""Metrics that two runs of one id do not share."""
JOBS = str(max(len(os.sched_getaffinity(0)), 2))
"""With so many jobs each worker has one thread. The number of threads can change the last bits of a result."""


@dataclass(frozen=True)
class Harness:
    """A version of the harness, run as a command."""

    folder: Path | None
    """Folder that contains the package; None: the installed package."""

    def environment(self, store: Path, tracking: str = "none") -> dict[str, str]:
        """The variables of a process that imports this version. `tracking` is empty for SQLite inside the store."""
        # The tests must not compile torch in each process, and must not take settings or code from outside.
        dropped = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
        kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("HARNESS_")}
        own = {"HARNESS_STORE": str(store), "HARNESS_TRACKING_URI": tracking, "PYTHONSAFEPATH": "1"}
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        path = {"PYTHONPATH": str(self.folder)} if self.folder else {}
        return {**kept, **own, **threads, **path}

    def start(self, store: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command in the folder of the specs; its output is appended to `store`.log."""
        with store.with_name(f"{store.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "harness", *arguments],
                cwd=SPECS,
                env=self.environment(store),
                stdout=log,
                stderr=log,
            )

    def command(self, store: Path, *arguments: str, tracking: str = "none", cwd: Path = SPECS) -> str:
        """Run a command to its end; returns its standard output."""
        return self._output(["-m", "harness", *arguments], self.environment(store, tracking), cwd)

    def python(self, store: Path, code: str, *arguments: str) -> str:
        """Run Python code that may import this version; returns its standard output."""
        return self._output(["-c", code, *arguments], self.environment(store), SPECS)

    def _output(self, arguments: list[str], environment: dict[str, str], cwd: Path) -> str:
        words = [sys.executable, *arguments]
        ended = subprocess.run(
            words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert ended.returncode == 0, f"{' '.join(arguments)}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def imported(self, store: Path) -> Path:
        """The file from which a process of this version imports the package."""
        return Path(self.python(store, "import harness; print(harness.__file__)").strip()).resolve()


def unpack(folder: Path) -> Harness:
    """Unpack the old package into `folder`, and make sure that its command imports it from there."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    old = Harness(folder)
    expected = (folder / "harness/__init__.py").resolve()
    assert old.imported(folder / "store") == expected, "the old command imports another package"
    return old


def installed() -> Harness:
    """The current code. Its command has to import the package that this process imports."""
    current = Harness(None)
    found = importlib.util.find_spec("harness")
    assert found is not None
    assert found.origin is not None
    assert current.imported(Path("store")) == Path(found.origin).resolve()
    return current


def runs(store: Path) -> dict[str, Path]:
    """The run folders of a store by id."""
    return {file.parent.name: file.parent for file in sorted(store.glob("runs/*/spec.json"))}


def planned(harness: Harness, store: Path, spec: str = "ablation.toml") -> dict[str, Any]:
    """The plan of a spec as data."""
    plan: dict[str, Any] = json.loads(harness.command(store, "plan", spec, "--json"))
    return plan


def arms(plan: dict[str, Any]) -> dict[str, str]:
    """The id of every run of a plan: `arm/seed`, and `teacher of arm/seed` where there is one."""
    teachers = {run["id"]: run["teacher"] for run in plan["runs"]}
    cells = {f"{arm['name']}/{seed}": run for arm in plan["arms"] for seed, run in arm["runs"].items()}
    taught = {f"teacher of {cell}": teacher for cell, run in cells.items() if (teacher := teachers[run])}
    return cells | taught


def untimed(values: dict[str, float]) -> str:
    """Metrics without timings, as text: all digits count, and NaN equals NaN."""
    return json.dumps({name: value for name, value in values.items() if name not in TIMINGS}, sort_keys=True)


def measured(metric: dict[str, float]) -> tuple[float, int]:
    """A metric without its standard error, which the old code gave as 0 where all samples or none are right."""
    return metric["value"], int(metric["samples"])


def result(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on the code's layout or on interruptions."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((run / "record.json").read_text())
    state = torch.load(run / "weights.pt", weights_only=True)["state_dict"]
    return {
        "metrics": [(line["step"], untimed(line["values"])) for line in lines],
        "final": untimed(record["final"]),
        "evaluations": [
            (one["set"], one["protocol_id"], {name: measured(metric) for name, metric in one["metrics"].items()})
            for one in record["evaluations"]
        ],
        "weights": {
            name: (str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
            for name, tensor in state.items()
        },
    }


def assert_same_results(store: Path, reference: Path) -> None:
    """Every run of the reference is done in `store` too, with the same results bit for bit."""
    found, expected = runs(store), runs(reference)
    assert found.keys() == expected.keys()
    for run, folder in expected.items():
        assert (found[run] / "record.json").exists(), f"run {run} is not done: {found[run]}"
        here, there = result(found[run]), result(folder)
        assert len(here["metrics"]) == len(there["metrics"]) > 0
        different = [part for part in there if here[part] != there[part]]
        assert not different, f"run {run} differs in {different}: {found[run]} {folder}"
