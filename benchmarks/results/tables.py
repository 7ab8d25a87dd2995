"""The tables that docs/results.md shows, each made from bundles alone with the statistics of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from harness.base.errors import SpecError
from harness.config.ablation import margin_size
from harness.execute.bundle import Bundle, read_bundle, root_hash
from harness.reporting import Document, collect
from harness.reporting.collect.comparison import Column
from harness.reporting.collect.results import TRAINING
from harness.reporting.formats.numbers import count, heading, interval, points, signed
from harness.reporting.formats.table import Table, TableCell, numbers, words
from harness.reporting.sections.answer import Verdict
from harness.reporting.sections.tables import EMPTY, difference_entries, mean_entry
from harness.runs.metrics import is_share
from harness.statistics import CONFIDENCE, Interval, t_interval

FACTS = ("positives_per_image", "mined_per_image", "mining_precision", "mining_recall")
"""Training metrics about mined positives."""
MARGIN = "2 points"
"""A claim counts as decided if it is better, worse, or equal within this margin or a smaller one."""
CLAIMS_NOTE = (
    "Verdicts are corrected for the number of claims of their column (Holm, p < 0.05); in brackets are intervals that "
    "cover for all claims of a column together (Bonferroni, 95 %). So the interval of a decided verdict may hold zero "
    "or reach beyond the margin. Seeds on demand: intervals do not account for earlier looks, verdicts do."
)
STAGES_NOTE = (
    "Fresh seeds: the claim was open after the first stage and asked again on seeds that only the second stage has; "
    "numbers are of these seeds, corrections for the claims of this bundle. Each bundle errs in at most 5 % of columns."
)
ARMS_NOTE = (
    "Mean ± standard deviation over seeds; in brackets the marginal 95 % interval. A difference in bold: p < 0.05 "
    "after Holm's correction for the number of arms. § The arm differs from the baseline in several parts."
)
FACTS_NOTE = "Mean ± standard deviation over seeds of what the last logged step says."
Options: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class Shown:
    """A bundle and the report that follows from it."""

    folder: Path
    label: str
    """What it is called in a table of several."""

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle, planned from its own files."""
        return read_bundle(self.folder)

    @cached_property
    def document(self) -> Document:
        """Its report."""
        return Document(collect(self.bundle.plan, self.bundle.store))

    @property
    def where(self) -> str:
        """The bundle in messages."""
        return f"bundle {self.folder.name}"


def claims(bundles: Sequence[Shown], _options: Options) -> Table:
    """Each claim on each data: its verdict, the difference with its corrected interval, the number of seeds.

    Bundles of the same label are the stages of one column: what a stage leaves open is asked again in the next, whose
    seeds alone then answer. Claims of the same text are one row, whatever the data that their metrics are of.

    Raises:
        SpecError: two stages share a run.
    """
    labels = dict.fromkeys(one.label for one in bundles)
    columns = {label: _column([one for one in bundles if one.label == label]) for label in labels}
    rows = dict.fromkeys(key for column in columns.values() for key in column)
    cells = [
        (
            TableCell(_said([column[key].verdict for column in columns.values() if key in column])),
            *(_verdict_cell(column[key]) if key in column else EMPTY for column in columns.values()),
        )
        for key in rows
    ]
    decided = [sum(is_decided(one.verdict) for one in column.values()) for column in columns.values()]
    parts = [f"{these} of {len(column)}" for these, column in zip(decided, columns.values(), strict=True)]
    cells.append((TableCell(f"decided at a margin of {MARGIN} or less"), *map(TableCell, parts)))
    total, all_cells = sum(decided), sum(map(len, columns.values()))
    share = f" ({100 * total / all_cells:.0f} %)" if all_cells else ""
    stages = f" {STAGES_NOTE}" if len(columns) < len(bundles) else ""
    notes = (f"Decided: {total} of {all_cells} cells{share}. {CLAIMS_NOTE}{stages}",)
    return Table("claims", "", words("claim", *columns), tuple(cells), notes)


@dataclass(frozen=True)
class _Judged:
    """A claim's verdict on some data."""

    verdict: Verdict
    family: int
    """Number of claims that it was corrected for."""
    is_fresh: bool
    """Whether it is of a later stage."""


def _column(stages: Sequence[Shown]) -> dict[tuple[str, str], _Judged]:
    """Verdicts of the last stage that asked for each claim, unless an earlier one had decided it."""
    column: dict[tuple[str, str], _Judged] = {}
    trained: set[str] = set()
    for place, shown in enumerate(stages):
        runs = set(shown.bundle.plan.cells.values())
        if shared := trained & runs:
            raise SpecError(f"shares run {min(shared)} with an earlier stage", where=shown.where, fix="use fresh seeds")
        trained |= runs
        verdicts = shown.document.verdicts
        family = sum(one.p is not None for one in verdicts)
        for key, verdict in _by_key(verdicts).items():
            if key not in column or not column[key].verdict.is_decided:
                column[key] = _Judged(verdict, family, is_fresh=place > 0)
    return column


def is_decided(one: Verdict) -> bool:
    """Whether a claim is decided at MARGIN. What is better or worse at some margin is so at every smaller one."""
    return one.is_decided and not (one.word == "equal" and not _is_small(one.margin))


def _is_small(margin: str | None) -> bool:
    if margin is None:
        return False
    (size, unit), (most, points_unit) = margin_size(margin), margin_size(MARGIN)
    return unit == points_unit and size <= most


def _by_key(verdicts: Sequence[Verdict]) -> dict[tuple[str, str], Verdict]:
    """By what a row is about: the claim's text, and its metric if several claims have this text."""
    texts = Counter(one.claim.text for one in verdicts)
    return {(one.claim.text, (one.claim.metric or "") if texts[one.claim.text] > 1 else ""): one for one in verdicts}


def _said(row: Sequence[Verdict]) -> str:
    metrics, sources = ({getattr(one.claim, name) or "" for one in row} for name in ("metric", "source"))
    more = [part for part in (*(metrics if len(metrics) == 1 else ()), *sorted(sources)) if part]
    return row[0].claim.text + (f" ({'; '.join(more)})" if more else "")


def _verdict_cell(judged: _Judged) -> TableCell:
    """A verdict with the difference that decides it."""
    one = judged.verdict
    word = one.text if one.is_decided else one.word
    if one.difference is None:
        return TableCell(word, muted=True)
    text = signed(one.metric, one.difference.mean)
    if (bounds := corrected(one, judged.family)) is not None:
        text += f" {interval(one.metric, bounds)}"
    seeds = count(one.difference.n, "fresh seed" if judged.is_fresh else "seed")
    return TableCell(f"{word}: {text}{points(one.metric)}, {seeds}", best=one.is_decided)


def corrected(one: Verdict, family: int) -> Interval | None:
    """The interval of a claim's difference. Those of all judged claims cover together with 95 % (Bonferroni).

    None if seeds do not tell it.
    """
    delta = one.difference
    if delta is None or delta.error is None or delta.df is None:
        return None
    return t_interval(delta.mean, delta.error, delta.df, 1 - (1 - CONFIDENCE) / max(family, 1))


def arms(bundles: Sequence[Shown], options: Options) -> Table:
    """Each arm: mean and standard deviation of each metric, and its difference to the baseline with its interval.

    Options: `metrics` and `arms`, separated by commas. Default: the primary and secondary metrics, all arms.
    """
    shown = _single(bundles)
    columns = _columns(shown, options) or shown.document.shown
    heads = [*words("arm"), *numbers("seeds")]
    for column in columns:
        unit = f", {points(column.metric).strip()}" if is_share(column.metric) else ""
        heads += numbers(heading(column.metric), f"Δ to baseline{unit}")
    return Table("arms", "", tuple(heads), _arm_rows(shown, options, columns, differences=True), (ARMS_NOTE,))


def facts(bundles: Sequence[Shown], options: Options) -> Table:
    """Each arm: means and standard deviations of what its training logged last.

    Options: `metrics` and `arms`, separated by commas. Default: what mining logs, all arms.
    """
    shown = _single(bundles)
    logged = shown.document.results.finals
    columns = _columns(shown, options, f"{TRAINING}/") or [
        shown.document.column(f"{TRAINING}/{name}") for name in FACTS if name in logged
    ]
    heads = (*words("arm"), *numbers("seeds", *(heading(one.metric.removeprefix(f"{TRAINING}/")) for one in columns)))
    rows = _arm_rows(shown, options, columns, differences=False)
    rows = tuple(tuple(_fact(cell, row[1]) for cell in row) for row in rows)
    return Table("facts", "", heads, rows, (FACTS_NOTE,))


def _fact(cell: TableCell, seeds: TableCell) -> TableCell:
    """`cell` without bold, because more is not better; nothing where finished runs do not log it."""
    return EMPTY if cell.muted and seeds.text != "0" else replace(cell, best=False)


def _arm_rows(
    shown: Shown, options: Options, columns: Sequence[Column], *, differences: bool
) -> tuple[tuple[TableCell, ...], ...]:
    results = shown.document.results
    chosen = _listed(options.get("arms")) or list(results.by_arm)
    for arm in chosen:
        if arm not in results.by_arm:
            raise SpecError(f"has no arm {arm!r}", where=shown.where, fix=f"its arms are {', '.join(results.by_arm)}")
    rows = []
    for arm in chosen:
        row = [
            TableCell(results.labels[arm]),
            TableCell(str(sum(one.record is not None for one in results.by_arm[arm]))),
        ]
        for column in columns:
            row.append(mean_entry(results, column, arm))
            row += difference_entries(results, column, arm)[:1] if differences else []
        rows.append(tuple(row))
    return tuple(rows)


def _columns(shown: Shown, options: Options, prefix: str = "") -> list[Column]:
    found = []
    for name in _listed(options.get("metrics")):
        column = shown.document.column(prefix + name)
        if not any(arm.values for arm in column.arms.values()):
            raise SpecError(f"has no value of {name}", where=shown.where, fix="name a metric of its report.json")
        found.append(column)
    return found


def settings(bundles: Sequence[Shown], _options: Options) -> Table:
    """What each bundle is: its runs, seeds, steps, batch, training images, hours, and root hash."""
    rows = []
    for shown in bundles:
        plan, about = shown.bundle.plan, shown.bundle.about
        records = [run.record for run in shown.document.results.done if run.record]
        training = {run: plan.runs[run] for run in plan.cells.values()}
        hours = sum(shown.bundle.store.run(run).record().cost.device_hours for run in about.runs)
        rows.append(
            (
                TableCell(shown.label),
                TableCell(f"{len(about.runs)} of {about.planned}"),
                TableCell(_range({len(plan.ids(arm.name)) for arm in plan.arms})),
                TableCell(_range({run.steps for run in training.values()})),
                TableCell(_range({run.experiment.train.global_batch_size for run in training.values()})),
                TableCell(_range({record.data.samples for record in records})),
                TableCell(f"{hours:.1f}"),
                TableCell(", ".join(commit[:7] for commit in about.commits)),
                TableCell(root_hash(shown.folder)),
            )
        )
    heads = (*words("bundle"), *numbers("runs", "seeds", "steps", "batch", "training images", "device-hours"))
    return Table("settings", "", (*heads, *words("commit", "root hash")), tuple(rows))


def report(bundles: Sequence[Shown], options: Options) -> Table:
    """A table of the report itself. Option: `table`, its key."""
    shown = _single(bundles)
    tables = {table.key: table for table in (*shown.document.answering, *shown.document.detail)}
    if (found := tables.get(options.get("table", ""))) is None:
        raise SpecError("needs table=KEY", where=shown.where, fix=f"its keys are {', '.join(tables)}")
    return found


TABLES: Mapping[str, tuple[Callable[[Sequence[Shown], Options], Table], frozenset[str]]] = {
    "claims": (claims, frozenset()),
    "arms": (arms, frozenset({"metrics", "arms"})),
    "facts": (facts, frozenset({"metrics", "arms"})),
    "settings": (settings, frozenset()),
    "report": (report, frozenset({"table"})),
}
"""By name: what makes the table, and its options."""


def _single(bundles: Sequence[Shown]) -> Shown:
    if len(bundles) != 1:
        raise SpecError("this table is of one bundle", where=", ".join(one.where for one in bundles), fix="name one")
    return bundles[0]


def _listed(stated: str | None) -> list[str]:
    return [part.strip() for part in stated.split(",")] if stated else []


def _range(found: set[int]) -> str:
    if not found:
        return "–"
    least, most = min(found), max(found)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
