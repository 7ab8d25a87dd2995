"""For a single seed: compares two checkpoints sample by sample, using the outcomes that their runs kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.files import require_plain
from harness.reporting.collect.comparison import ArmValue, Column
from harness.reporting.collect.results import Results, RunResult
from harness.reporting.formats.numbers import interval, p_value, points, signed
from harness.reporting.formats.table import Head, Table, TableCell, numbers
from harness.reporting.sections.tables import EMPTY
from harness.runs.metrics import is_share
from harness.statistics import CONFIDENCE, SampleTest, compare_samples, holm

MOST_ARMS = 100
_TOP = re.compile(r"acc(\d+)")
_CHOICE = re.compile(r"(text_|image_)?acc")
_RECALL = re.compile(r"(image_retrieval|text_retrieval)_recall@(\d+)")


@dataclass(frozen=True, eq=False)
class Hits:
    """Which samples a run got right, in the order of their keys."""

    keys: NDArray[Any]
    """[n], key of each sample."""
    images: NDArray[Any]
    """[n], image of each sample."""
    right: NDArray[np.bool_]
    """[n]"""


def sample_table(results: Results, column: Column) -> Table | None:
    """Arms with one seed against the baseline's run of that seed. None if there are more seeds, or no outcomes."""
    single = [arm for arm in column.comparable if arm.difference is not None and arm.difference.n == 1]
    tests = {arm.arm: test for arm in single[:MOST_ARMS] if (test := _tested(results, column, arm)) is not None}
    if not tests:
        return None
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    rows = tuple(
        (TableCell(results.labels[arm]), *_entries(column, tests[arm], corrected[arm]))
        for arm in results.by_arm
        if arm in tests
    )
    unit = f" ({points(column.metric).strip()})" if is_share(column.metric) else ""
    baseline = results.labels[results.plan.ablation.baseline]
    heads = (
        Head("Arm", numeric=False),
        Head(f"Δ to baseline{unit} [95 % over samples]"),
        *numbers("only this arm right", "only baseline right", "p (McNemar, Holm)", "samples"),
    )
    notes = [
        f"There is one seed, so each arm is one checkpoint against one of {baseline}, on the same samples: the paired "
        "bootstrap's interval and McNemar's exact test tell whether these two checkpoints differ. Trained with another "
        "seed both may come out otherwise, so nothing is claimed about the arms.",
    ]
    if any(test.p is None for test in tests.values()):
        notes.append("Captions of one image are drawn together, not independent: McNemar's test is left out.")
    return Table("samples", f"One seed: {column.metric} sample by sample", heads, rows, tuple(notes))


def read_hits(run: RunResult, metric: str) -> Hits | None:
    """The samples that the run got right in `set/metric`. None if it kept no outcomes of that set and protocol."""
    set_name, _, name = metric.partition("/")
    measured = run.measured.get(metric)
    if measured is None or not any(kind.fullmatch(name) for kind in (_TOP, _CHOICE, _RECALL)):
        return None
    for file in sorted(run.folder.outcomes.glob("*.parquet")):
        if file.relative_to(run.folder.path).as_posix() in run.changed:
            continue
        # A damaged file of a run without a seal; the run's remarks name it (`collect.results`).
        with suppress(OSError, LookupError, NotImplementedError, TypeError, ValueError):
            if _is_of(file, set_name, measured.protocol_id):
                return _hits(file, name)
    return None


def _tested(results: Results, column: Column, arm: ArmValue) -> SampleTest | None:
    ours, theirs = results.by_arm[arm.arm], results.by_arm[results.plan.ablation.baseline]
    (seed,) = arm.values.keys() & column.arms[results.plan.ablation.baseline].values.keys()
    hits = [read_hits(run, column.metric) for runs in (ours, theirs) for run in runs if run.seed == seed]
    one, other = hits
    if one is None or other is None or not np.array_equal(one.keys, other.keys):
        return None
    _, groups = np.unique(one.images, return_inverse=True)
    return compare_samples(one.right, other.right, groups.astype(np.int64))


def _entries(column: Column, test: SampleTest, corrected: float | None) -> Iterator[TableCell]:
    text = f"{signed(column.metric, test.difference)} {interval(column.metric, test.interval)}"
    yield TableCell(text)
    yield TableCell(f"{test.only_ours:,}")
    yield TableCell(f"{test.only_theirs:,}")
    yield EMPTY if corrected is None else TableCell(p_value(corrected), best=corrected < 1 - CONFIDENCE)
    yield TableCell(f"{test.samples:,}")


def _is_of(file: Path, set_name: str, protocol_id: str | None) -> bool:
    import pyarrow.parquet as pq  # this import takes half as long as the rest of a report

    require_plain(file)
    metadata = pq.read_schema(file).metadata or {}
    return (metadata.get(b"set"), metadata.get(b"protocol_id")) == (set_name.encode(), (protocol_id or "").encode())


def _hits(file: Path, name: str) -> Hits:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    columns = {key: np.asarray(table[key].to_numpy()) for key in table.column_names}
    if choice := _CHOICE.fullmatch(name):
        sides = [f"{choice[1][:-1]}s"] if choice[1] else ["texts", "images"]
        kept = np.any([columns[side] > 1 for side in sides], axis=0)
        keys, images = columns["key"][kept].astype(str), columns["image"][kept]
        order = np.argsort(keys, kind="stable")
        right = np.all([columns[f"found_{side}"][kept] for side in sides], axis=0)
        return Hits(keys[order], images[order], right[order])
    if top := _TOP.fullmatch(name):
        keys, limit = columns["key"].astype(str), int(top[1])
        kept = np.ones(len(keys), dtype=bool)
        images = keys
    else:
        recall = _RECALL.fullmatch(name)
        assert recall is not None
        kept, limit = columns["direction"] == recall[1], int(recall[2])
        images = columns["key"].astype(str)
        keys = np.char.add(np.char.add(images, "\n"), columns["caption"].astype(str))
    order = np.argsort(keys[kept], kind="stable")
    return Hits(keys[kept][order], images[kept][order], (columns["rank"][kept] <= limit)[order])
