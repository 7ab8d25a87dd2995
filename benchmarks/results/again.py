"""Train the runs of a bundle from nothing, and compare their digits with those that it states."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

from harness import api
from harness.base.errors import StoreError
from harness.execute.bundle import Bundle, read_bundle
from harness.execute.verify import OF_THE_MACHINE
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.settings import load_settings
from harness.runs.store import Store


def train(folder: Path, on: str = "local", seeds: Sequence[int] = ()) -> list[str]:
    """Train every run of the unpacked bundle `folder` in a store of its own; returns what differs, a sentence each.

    Args:
        on: `local` (processes of this machine) or `inline` (this process).
        seeds: train the runs of these seeds alone, and what they need; default: all.

    Raises:
        HarnessError: it has no run of these seeds, its data is not on this machine, or a run cannot be started.
    """
    bundle = read_bundle(folder)
    ablation = bundle.plan.ablation.model_copy(update={"seeds": tuple(seeds)} if seeds else {})
    with tempfile.TemporaryDirectory(prefix="harness-results-") as scratch:
        changes = {"store": Path(scratch) / "store", "tracking_uri": "none", "threads": _threads(bundle)}
        settings = load_settings().model_copy(update=changes)
        project = Project(settings, Store(settings.store, settings.evaluation_root))
        plan = project.plan(ablation, name=bundle.about.name)
        runs = [run for run in bundle.about.runs if not seeds or run in plan.runs]
        if not set(runs) & set(plan.cells.values()):
            raise StoreError(f"has no run of seeds {list(seeds)}", where=str(folder), fix="name seeds that it has")
        print(f"{folder.name}: training {len(runs)} runs in {settings.store}", flush=True)
        api.run(plan, on=on)
        problems = list(differing(bundle, project.store, runs))
    print(f"{folder.name}: {'differs' if problems else f'all {len(runs)} runs have the same digits'}")
    return problems


def differing(bundle: Bundle, store: Store, runs: Iterable[str]) -> Iterator[str]:
    """In what `runs` of `store` differ from those of the bundle, a sentence each."""
    for run in runs:
        who, ours, theirs = f"bundle {bundle.about.name}: run {run}", bundle.store.run(run), store.run(run)
        if not theirs.record_file.exists():
            yield f"{who} was not trained again"
            continue
        parts = [name for name, what in digits(ours).items() if what != digits(theirs)[name]]
        if parts:
            software = sorted(_software(ours).items() ^ _software(theirs).items())
            hint = f" (other software or device: {software})" if software else ""
            yield f"{who}, trained again, has other {', '.join(parts)}{hint}"


def _threads(bundle: Bundle) -> int:
    """Threads of a run, on which the last bits depend: as most runs of the bundle had."""
    return mode(bundle.store.run(run).record().cost.threads for run in bundle.about.runs)


def digits(run: RunFolder) -> dict[str, Any]:
    """Everything of a finished run that does not depend on the clock or on the machine's load.

    Raises:
        StoreError: its record is damaged, or names no weights.
    """
    record = run.record()
    if not record.evaluations or not all(one.weights for one in record.evaluations):
        raise StoreError("does not name the weights that were evaluated", where=str(run.record_file))
    lines = [(line.step, _without_pace(line.values)) for line in run.step_metrics()]
    return {
        "weights": {one.weights for one in record.evaluations},
        "metrics": {(one.set, one.protocol_id): one.metrics for one in record.evaluations},
        "last training metrics": _without_pace(record.final),
        "curves": lines,
    }


def _without_pace(values: Any) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in OF_THE_MACHINE}


def _software(run: RunFolder) -> dict[str, str]:
    record = run.record()
    return {**record.versions, "device": record.cost.device, "threads": str(record.cost.threads)}
