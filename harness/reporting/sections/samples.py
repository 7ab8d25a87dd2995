"""Arms sample by sample, from the outcomes that runs kept: for one seed two checkpoints, for several seeds the error of
another test set beside that of another training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.files import require_plain
from harness.reporting.collect.comparison import ArmValue, Column
from harness.reporting.collect.results import Results, RunResult
from harness.reporting.formats.numbers import count, interval, named, p_value, points, signed
from harness.reporting.formats.table import Head, Table, TableCell, numbers
from harness.reporting.sections.tables import EMPTY
from harness.runs.metrics import is_share
from harness.statistics import CONFIDENCE, SampleError, SampleTest, compare_samples, holm, sample_error

MOST_ARMS = 100
_TOP = re.compile(r"acc(\d+)")
_CHOICE = re.compile(r"(text_|image_)?acc")
_RECALL = re.compile(r"(image_retrieval|text_retrieval)_recall@(\d+)")


@dataclass(frozen=True, eq=False)
class SampleRows:
    """The samples of a metric, in the order of their keys."""

    table: Any
    """The columns of an outcome file that tell which samples these are."""
    rows: NDArray[np.intp]
    """[n], row of each sample in the file."""
    keys: NDArray[Any]
    """[n], key of each sample."""
    images: NDArray[Any]
    """[n], image of each sample."""

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """[n], number of each sample's image: captions of one image are drawn together."""
        return np.unique(self.images, return_inverse=True)[1].astype(np.int64)

    def are(self, other: SampleRows) -> bool:
        """Whether `other` are the same samples."""
        return self is other or np.array_equal(self.keys, other.keys)


@dataclass(frozen=True, eq=False)
class Hits:
    """Which samples a run got right."""

    samples: SampleRows
    right: NDArray[np.bool_]
    """[n]"""


def sample_table(results: Results, column: Column) -> Table | None:
    """Arms with one seed against the baseline's run of that seed. None if there are more seeds, or no outcomes."""
    single = [arm for arm in column.comparable if arm.difference is not None and arm.difference.n == 1]
    tests = {arm.arm: test for arm in single[:MOST_ARMS] if (test := _tested(results, column, arm)) is not None}
    if not tests:
        return None
    unread = [1.0] * len(single[MOST_ARMS:])
    corrected = dict(zip(tests, holm([*(test.p for test in tests.values()), *unread]), strict=False))
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
    notes += _beyond(len(single))
    return Table("samples", f"One seed: {column.metric} sample by sample", heads, rows, tuple(notes))


def sample_errors(results: Results, column: Column) -> dict[str, SampleError | None]:
    """For each arm with several seeds: the error over the evaluation samples of its difference to the baseline. None
    where a run kept no outcomes, or other samples than the baseline's. Of the MOST_ARMS best; empty if no run kept any.
    """
    several = _several(column)[:MOST_ARMS]
    if not several:
        return {}
    reader = HitsReader(column.metric)
    theirs = _of_seeds(results, column, results.plan.ablation.baseline, reader)
    ours = {arm.arm: _of_seeds(results, column, arm.arm, reader) for arm in several}
    kept = any(hits for runs in (theirs, *ours.values()) for hits in runs.values())
    return {arm: _error(runs, theirs) for arm, runs in ours.items()} if kept else {}


def errors_table(results: Results, column: Column, errors: Mapping[str, SampleError | None]) -> Table | None:
    """What another training and what another test set would change about each difference. None without outcomes."""
    if not errors:
        return None
    arms = [(arm, column.arms[arm].difference, errors[arm]) for arm in results.by_arm if arm in errors]
    rows = []
    for arm, delta, error in arms:
        if delta is not None and error is not None:
            ranges = delta.interval, error.interval, error.both(delta)
            texts = [interval(column.metric, one) if one else "" for one in ranges]
            cells = [TableCell(signed(column.metric, delta.mean)), *map(TableCell, texts)]
            rows.append((TableCell(results.labels[arm]), *cells, TableCell(f"{error.samples:,}")))
    unit = f" ({points(column.metric).strip()})" if is_share(column.metric) else ""
    heads = (
        Head("Arm", numeric=False),
        *numbers(f"Δ to baseline{unit}", "another training", "another test set", "both", "samples"),
    )
    notes = [
        "95 % intervals of the difference, each alone: if the arms were trained again with other seeds and tested on "
        "these samples; if these checkpoints were tested on other samples of the same kind; and if both were new."
    ]
    lacking = [named(results.labels[arm]) for arm, _, error in arms if error is None]
    if lacking:
        why = "not every run kept its outcomes, or nothing varies over samples"
        what = f"{count(len(lacking), 'arm')} left out ({why})"
        notes.append(f"{what}: {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}.")
    notes += _beyond(len(_several(column)))
    return Table(
        "errors",
        f"Two errors: {column.metric} of another training, and on another test set",
        heads,
        tuple(rows),
        tuple(notes),
    )


def _several(column: Column) -> list[ArmValue]:
    """Arms whose difference has an error over seeds."""
    return [arm for arm in column.comparable if arm.difference is not None and arm.difference.error is not None]


def _beyond(arms: int) -> list[str]:
    """The note on arms that are left out because there are more than MOST_ARMS."""
    return [f"The {MOST_ARMS} best of {arms} arms: outcomes of the others are not read."] if arms > MOST_ARMS else []


def _of_seeds(results: Results, column: Column, arm: str, reader: HitsReader) -> dict[int, Hits | None]:
    """Hits of an arm's runs that its mean contains, by seed."""
    wanted = column.arms[arm].values
    return {run.seed: reader.read(run) for run in results.by_arm[arm] if run.seed in wanted}


def _error(ours: Mapping[int, Hits | None], theirs: Mapping[int, Hits | None]) -> SampleError | None:
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    kept = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(kept) < len(pairs) or not kept:
        return None
    first = kept[0][0].samples
    if not all(first.are(hits.samples) for pair in kept for hits in pair):
        return None
    return sample_error(np.stack([one.right.astype(np.float64) - other.right for one, other in kept]), first.groups)


class HitsReader:
    """Reads which samples runs got right in one metric, `set/metric`."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._set, _, name = metric.partition("/")
        top, choice, recall = _TOP.fullmatch(name), _CHOICE.fullmatch(name), _RECALL.fullmatch(name)
        self._limit = int(top[1]) if top else int(recall[2]) if recall else 0
        self._direction = recall[1] if recall else None
        self._sides = [] if choice is None else [f"{choice[1][:-1]}s"] if choice[1] else ["texts", "images"]
        self._is_known = bool(top or choice or recall)
        self._samples: SampleRows | None = None
        """Those of the last file: sorting them takes longest, and runs of one set have the same."""

    def read(self, run: RunResult) -> Hits | None:
        """None if the run kept no outcomes of that set and protocol, or they do not determine the metric."""
        measured = run.measured.get(self._metric)
        if measured is None or not self._is_known:
            return None
        for file in sorted(run.folder.outcomes.glob("*.parquet")):
            if file.relative_to(run.folder.path).as_posix() in run.changed:
                continue
            # A damaged file of a run without a seal; the run's remarks name it (`collect.results`).
            with suppress(OSError, LookupError, NotImplementedError, TypeError, ValueError):
                if _is_of(file, self._set, measured.protocol_id):
                    return self._hits(file)
        return None

    def _hits(self, file: Path) -> Hits:
        import pyarrow.parquet as pq

        telling = ["key", "image", *self._sides] if self._sides else ["key"]
        telling = ["key", "direction", "caption"] if self._direction else telling
        outcomes = [f"found_{side}" for side in self._sides] or ["rank"]
        table = pq.read_table(file, columns=[*telling, *outcomes])
        told = table.select(telling)
        if self._samples is None or not told.equals(self._samples.table):
            self._samples = self._sorted(told)
        rows = self._samples.rows
        if self._sides:
            right = np.all([table[f"found_{side}"].to_numpy()[rows] for side in self._sides], axis=0)
        else:
            right = table["rank"].to_numpy()[rows] <= self._limit
        return Hits(self._samples, right)

    def _sorted(self, table: Any) -> SampleRows:
        columns = {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
        keys = images = columns["key"].astype(str)
        rows = np.arange(len(keys))
        if self._sides:
            images = columns["image"]
            rows = rows[np.any([columns[side] > 1 for side in self._sides], axis=0)]
        elif self._direction:
            keys = np.char.add(np.char.add(images, "\n"), columns["caption"].astype(str))
            rows = rows[columns["direction"] == self._direction]
        rows = rows[np.argsort(keys[rows], kind="stable")]
        return SampleRows(table, rows, keys[rows], images[rows])


def _tested(results: Results, column: Column, arm: ArmValue) -> SampleTest | None:
    ours, theirs = results.by_arm[arm.arm], results.by_arm[results.plan.ablation.baseline]
    (seed,) = arm.values.keys() & column.arms[results.plan.ablation.baseline].values.keys()
    reader = HitsReader(column.metric)
    one, other = [reader.read(run) for runs in (ours, theirs) for run in runs if run.seed == seed]
    if one is None or other is None or not one.samples.are(other.samples):
        return None
    return compare_samples(one.right, other.right, one.samples.groups)


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
