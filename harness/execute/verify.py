"""Check finished runs without the code that made them: seals, metrics from outcomes, a run trained again.

Metrics are derived from the outcomes of single samples by code of its own, and the numbers of a report from these in
`harness.execute.verify_report`. What cannot be checked is listed, not passed over.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from harness.base.boundary import as_sentence
from harness.base.errors import StoreError
from harness.base.files import require_plain
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.identity import Identity
from harness.runs.integrity import changed_files
from harness.runs.planned import PlannedRun
from harness.runs.record import Record
from harness.runs.request import Request
from harness.runs.store import Store

CLOSE = 1e-9
"""Relative tolerance of numbers that other code derives in another order of operations."""
OF_THE_MACHINE = frozenset({"images_per_s", "data_wait", "mfu", "peak_memory_gb"})
"""Training metrics that depend on the machine's load."""
CHOICES = {"text_acc": ["texts"], "image_acc": ["images"], "acc": ["texts", "images"]}
"""By metric of a pair task: the sides that offer a choice."""
Key = tuple[str, str, str, str]
"""Run, evaluation set, protocol, metric."""


@dataclass
class Verification:
    """What was checked. It is true if nothing was found wrong."""

    problems: list[str] = field(default_factory=list)
    """What is wrong, a sentence each."""
    unproven: list[str] = field(default_factory=list)
    """What could not be checked, and why."""
    runs: int = 0
    """Finished runs that were looked at."""
    files: int = 0
    """Files, weights among them, that are as they were sealed."""
    metrics: int = 0
    """Recorded metrics that were derived from outcomes again, and agree."""
    report: int = 0
    """Numbers of the report that were derived again, and agree."""
    root: str = ""
    """The root hash of a bundle."""
    retrained: int = 0
    """Runs that were trained again, and gave the same bits."""
    derived: dict[Key, float] = field(default_factory=dict)
    """Values of metrics from outcomes; recorded ones where there are no outcomes."""
    folders: dict[str, RunFolder] = field(default_factory=dict)
    """The finished runs that were looked at, by id."""

    def __bool__(self) -> bool:
        return not self.problems


def verify_run(
    folder: RunFolder, found: Verification, identity: Identity | None = None, left_out: frozenset[str] = frozenset()
) -> None:
    """Check one finished run: whose it is, its seal, and its metrics from its outcomes.

    Args:
        left_out: names of sealed files that a bundle need not have.
    """
    found.runs += 1
    found.folders[folder.id] = folder
    try:
        record = folder.record(identity)
    except StoreError as error:
        found.problems.append(str(error))
        return
    who = f"run {folder.id}"
    if record.seal is None:
        found.unproven.append(f"{who} has no seal (an earlier version made it): later changes are not seen")
        if lines := folder.damaged_lines():
            found.problems.append(f"{folder.metrics}: {len(lines)} lines are damaged; the run's curve lacks them")
    else:
        changed = changed_files(record, folder.path, ("",))
        found.files += len(record.seal.files.keys() - set(changed))
        changed = [name for name in changed if name not in left_out or (folder.path / name).exists()]
        found.problems += [f"{folder.path / name} was changed since the run ended" for name in changed]
    _metrics(folder, record, found)
    _contents(who, record, found)


def retrain(plan: Plan, project: Project, count: int, found: Verification) -> None:
    """Train the first `count` finished runs of the plan again in a store of their own, and compare them bit for bit."""
    done = [run for run in plan.runs.values() if run.role == "arm" and project.store.run(run.id).record_file.exists()]
    for run in done[:count]:
        with tempfile.TemporaryDirectory(prefix="harness-verify-") as scratch:
            try:
                _retrained(run, project, Path(scratch), found)
            except Exception as error:  # one run must not end the others' checks
                if (told := as_sentence(error)) is None and not isinstance(error, BadZipFile):
                    raise
                found.problems.append(f"run {run.id} cannot be trained again: {told or error}")
    if len(done) < count:
        found.unproven.append(f"{count - len(done)} runs to train again are not there: {len(done)} have finished")


def _retrained(run: PlannedRun, project: Project, scratch: Path, found: Verification) -> None:
    original = project.store.run(run.id)
    record = original.record(run.identity)
    store = Store(scratch / "store", project.store.evaluation_root)
    store.begin()
    store.data.symlink_to(project.store.data.resolve())  # generated worlds and indexes, which say what they are of
    if run.teacher is not None:
        shutil.copytree(project.store.run(run.teacher).path, store.run(run.teacher).path)
    settings = project.settings.model_copy(update={"store": store.root})
    request = Request.of(run.experiment, run.id, run.teacher, settings, record.cost.threads)
    folder = store.run(run.id)
    folder.prepare(run.identity, request.model_copy(update={"processes": record.cost.devices}).written())
    threads = {name: str(record.cost.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with folder.log.open("ab") as log:
        command = [sys.executable, "-m", "harness.worker", str(folder.path)]
        status = subprocess.run(command, env=os.environ | threads, stdout=log, stderr=log, check=False).returncode
    who = f"run {run.id}, trained again,"
    if status:
        tail = folder.log.read_text(errors="replace").strip().splitlines()[-1:]
        found.problems.append(f"{who} fails: {''.join(tail) or f'exit status {status}'}")
        return
    again = folder.record()
    differences = _differences(original, record, folder, again)
    if not differences:
        found.retrained += 1
    elif other := _other_software(record, again):
        found.unproven.append(f"{who} differs ({'; '.join(differences)}), and so does the software: {other}")
    else:
        fix = "expected on another kind of processor, else the run is not reproducible"
        found.problems.append(f"{who} differs ({'; '.join(differences)}); {fix}")


def _differences(one: RunFolder, ours: Record, two: RunFolder, theirs: Record) -> list[str]:
    found = ["weights"] if _tensors(one.weights) != _tensors(two.weights) else []
    finals = [{k: v for k, v in record.final.items() if k not in OF_THE_MACHINE} for record in (ours, theirs)]
    found += ["final training metrics"] if finals[0] != finals[1] else []
    values = {
        (one.set, one.protocol_id, name): value for one in ours.evaluations for name, value in one.metrics.items()
    }
    for again in theirs.evaluations:
        for name, metric in again.metrics.items():
            before = values.get((again.set, again.protocol_id, name), metric)
            if before != metric:
                found.append(f"{again.set}/{name} {before.value:.6f} and {metric.value:.6f}")
    return found


def _tensors(weights: Path) -> dict[str, bytes]:
    """What a weights file holds, without what torch derives from the file's name."""
    with ZipFile(weights) as archive:
        parts = {name.partition("/")[2]: name for name in archive.namelist()}
        return {
            part: archive.read(name) for part, name in parts.items() if part == "data.pkl" or part.startswith("data/")
        }


def _other_software(ours: Record, theirs: Record) -> str:
    pairs = {name: (ours.versions.get(name), theirs.versions.get(name)) for name in ours.versions | theirs.versions}
    pairs["device"] = (ours.cost.device, theirs.cost.device)
    return ", ".join(f"{name} {before} and {now}" for name, (before, now) in pairs.items() if before != now)


def _metrics(folder: RunFolder, record: Record, found: Verification) -> None:
    tables, who = list(outcomes_of(folder, found.problems)), f"run {folder.id}"
    found.derived |= {(folder.id, "train", "", name): value for name, value in record.final.items()}
    for one in record.evaluations:
        of = [table for name, protocol, table in tables if (name, protocol) == (one.set, one.protocol_id)]
        missing = set[str]()
        for name, metric in one.metrics.items():
            stated = (metric.value, metric.standard_error, metric.samples)
            again = [value for table in of if (value := _metric(one.task, name, table)) is not None]
            if record.seal is None:  # the code before seals gave no error where all samples or none are right
                again += [(value, 0.0, samples) for value, _, samples in again]
            found.derived[folder.id, one.set, one.protocol_id, name] = metric.value
            if not again:
                missing.add(name)
            elif not any(agree(value, stated) for value in again):
                told = f"{metric.value:.6f}, its outcomes {again[0][0]:.6f}"
                found.problems.append(f"{who}: the record says {one.set}/{name} is {told}")
                found.derived[folder.id, one.set, one.protocol_id, name] = again[0][0]
            else:
                found.metrics += 1
        if missing:
            why = "its outcomes do not determine them" if of else "it kept no outcomes of this protocol"
            found.unproven.append(f"{who}: {one.set}: {', '.join(sorted(missing))}: {why}")


def outcomes_of(folder: RunFolder, problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Set, protocol and columns of each file of outcomes.

    Args:
        problems: gets a sentence for each file that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(folder.outcomes.glob("*.parquet")):
        try:
            require_plain(file)
            table = pq.read_table(file)
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            columns = {name: table[name].to_numpy() for name in table.column_names}
            yield metadata["set"], metadata["protocol_id"], columns
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(f"{file} cannot be read as outcomes ({reason.partition(chr(10))[0]})")


def _metric(task: str, name: str, columns: Mapping[str, Any]) -> tuple[float, float | None, int] | None:
    """Value, standard error and samples of a metric, from one row for each sample or query; None if not from these."""
    if name in columns:  # a metric of the user's own, in retrieval by caption
        kept = [place for place, value in enumerate(columns[name]) if not math.isnan(value)]
        groups = [columns["key"][place] for place in kept] if task == "zeroshot_retrieval" else None
        return _mean([float(columns[name][place]) for place in kept], groups)
    if task == "image_caption_selection":
        return _choice(name, columns)
    stem, _, k = name.removeprefix("lp_").partition("@")
    ranks = [int(rank) for rank in columns["rank"]]
    if task in ("zeroshot_classification", "linear_probe") and not k:
        if stem == "mean_per_class_recall":
            return _per_class(ranks, columns["label"])
        if stem.startswith("acc") and stem[3:].isdecimal():
            return _share([rank <= int(stem[3:]) for rank in ranks])
    if task == "zeroshot_retrieval" and k.isdecimal() and stem.endswith("_recall"):
        rows = zip(columns["direction"], columns["key"], ranks, strict=True)
        hits = [(key, rank <= int(k)) for direction, key, rank in rows if f"{direction}_recall" == stem]
        return _share([hit for _, hit in hits], [key for key, _ in hits]) if hits else None
    return None


def _choice(name: str, columns: Mapping[str, Any]) -> tuple[float, float, int] | None:
    """A metric of a pair task: the share of groups, among those that offer the choice."""
    needed = CHOICES.get(name)
    if needed is None:
        return None
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [row for row in rows if any(row[side] > 1 for side in needed)]
    hits = [all(bool(row[f"found_{side}"]) for side in needed) for row in rows]
    return _share(hits, [row["image"] for row in rows]) if rows else None


def _share(hits: Sequence[bool], groups: Sequence[Any] | None = None) -> tuple[float, float, int]:
    """The share of hits. Its standard error adds up deviations within a group first: they depend on one another.

    Where all are hits or none is, the error is that of (n share + 1/2) / (n + 1) of n groups.
    """
    value, error, count = _mean([float(hit) for hit in hits], groups)
    if error is None:
        n = len(hits) if groups is None else len(set(groups))
        near = (value * n + 0.5) / (n + 1)
        error = math.sqrt(near * (1 - near) / n)
    return value, error, count


def _mean(values: Sequence[float], groups: Sequence[Any] | None) -> tuple[float, float | None, int]:
    """The mean, its standard error as in `_share`, which is None if all values are equal, and their number."""
    mean = math.fsum(values) / len(values)
    deviations: dict[Any, list[float]] = {}
    for place, value in enumerate(values):
        deviations.setdefault(place if groups is None else groups[place], []).append(value - mean)
    squares = math.fsum(math.fsum(group) ** 2 for group in deviations.values())
    return mean, None if min(values) == max(values) else math.sqrt(squares) / len(values), len(values)


def _per_class(ranks: Sequence[int], labels: Iterable[Any]) -> tuple[float, float, int]:
    classes: dict[Any, list[bool]] = {}
    for rank, label in zip(ranks, labels, strict=True):
        classes.setdefault(label, []).append(rank <= 1)
    recalls = [(sum(hits) / len(hits), len(hits)) for hits in classes.values()]
    mean, shares = statistics.fmean(recall for recall, _ in recalls), recalls
    if all(recall in (0, 1) for recall, _ in recalls):
        shares = [((recall * count + 0.5) / (count + 1), count) for recall, count in recalls]
    variance = math.fsum(share * (1 - share) / count for share, count in shares) / len(recalls) ** 2
    return mean, math.sqrt(variance), len(ranks)


def agree(derived: Sequence[float | None], stated: Sequence[float | None]) -> bool:
    """Whether numbers agree up to rounding; an absent one agrees with an absent one."""
    return all(
        ours is theirs if ours is None or theirs is None else math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=CLOSE)
        for ours, theirs in zip(derived, stated, strict=True)
    )


def _contents(who: str, record: Record, found: Verification) -> None:
    """Sets that were measured in several ways, which reports of earlier versions may have mixed."""
    ways: dict[str, set[str]] = {}
    for one in record.evaluations:
        ways.setdefault(one.set, set()).add(one.protocol_id)
    for name, protocols in ways.items():
        if len(protocols) > 1:
            what = f"{who}: {name} was measured in {len(protocols)} ways"
            found.unproven.append(f"{what}: a report by an earlier version may show the numbers of another spec")
