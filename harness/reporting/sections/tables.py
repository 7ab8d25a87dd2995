"""The tables that answer: arms with their differences, claims with verdicts, reported numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.config.ablation import Reference
from harness.planning.isolation import common_factor, listed
from harness.reporting.collect.comparison import ArmValue, Column, shared_level
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import (
    NOTHING,
    clean,
    count,
    difference,
    heading,
    higher_is_better,
    interval,
    mean,
    p_value,
    points,
    signed,
    unit,
    value,
)
from harness.reporting.formats.table import Head, Table, TableCell, numbers, words
from harness.reporting.sections.answer import LEVELS, Verdict, is_shown
from harness.runs.metrics import is_share
from harness.statistics import Estimation

METHODS: dict[Estimation, str] = {
    "shared": "Δ is taken over equal seeds; its error shares the variances of all arms (docs/statistics.md).",
    "paired": "Δ is taken over equal seeds; its error is that of a paired t-test on these two arms alone.",
}
"""What a report says of the method, in one line."""
EMPTY = TableCell(NOTHING, muted=True)
NO_ARM = "no arm"
"""In place of our number for a published system that no arm trains."""
_GRAVITY = ("failed", "interrupted", "running", "missing")


def arms_table(results: Results, columns: Sequence[Column]) -> Table:
    """Arms with the primary metric, its paired difference to the baseline, and the secondary metrics.

    Args:
        columns: the primary metric's column first.
    """
    primary, *secondary = columns
    ablation = results.plan.ablation
    several = len(results.by_arm) > 1
    references = {one.arm: one for one in ablation.references if one.metric == primary.metric}
    unit_of_difference = f" ({points(primary.metric).strip()})" if is_share(primary.metric) else ""
    heads = [Head("Arm", numeric=False), *numbers(heading(primary.metric), "seeds")]
    heads += numbers(f"Δ to baseline{unit_of_difference}", "p (Holm)") if several else ()
    heads += numbers("reported", "ours − reported") if references else ()
    heads += numbers(*(heading(column.metric) for column in secondary))
    rows = []
    for arm in results.by_arm:
        row = [TableCell(results.labels[arm]), mean_entry(results, primary, arm), _seeds_entry(results, primary, arm)]
        row += difference_entries(results, primary, arm) if several else []
        row += _reference_entries(primary, arm, references) if references else []
        rows.append((*row, *(mean_entry(results, column, arm) for column in secondary)))
    for name, one in ablation.published.items():
        reported = _reference_entries(primary, name, references) if references else []
        before = [TableCell(one.label), TableCell(NO_ARM, muted=True), *[EMPTY] * (3 if several else 1)]
        rows.append((*before, *reported, *[EMPTY] * len(secondary)))
    caption = "Arms: mean ± standard deviation over seeds, and the difference to the baseline"
    notes = _arms_notes(results, primary, several, bool(references))
    return Table("arms", caption, tuple(heads), tuple(rows), tuple(notes))


def claims_table(results: Results, verdicts: Sequence[Verdict]) -> Table | None:
    """Each claim with the difference that decides it."""
    if not verdicts:
        return None
    margins = any(one.margin for one in verdicts)
    rows = tuple(
        (
            TableCell(clean(one.claim.text) + (f" ({clean(one.claim.source)})" if one.claim.source else "")),
            TableCell(clean(one.text), best=one.is_decided),
            TableCell(difference(one.metric, one.difference, with_points=True)) if one.difference else EMPTY,
            TableCell(p_value(one.p), muted=one.p is None),
            *([TableCell(p_value(one.equality_p), muted=one.equality_p is None)] if margins else []),
            TableCell(f"{results.labels[one.claim.arm]} − {results.labels[one.claim.than]}"),
            TableCell(clean(one.subject)),
            TableCell(one.metric),
        )
        for one in verdicts
    )
    how = "" if results.plan.ablation.on_demand else " (Holm)"
    heads = (
        *words("Claim", "Verdict"),
        *numbers("Δ [95 % interval]", *(name + how for name in ("p", *(["p of inequality"] if margins else [])))),
        *words("Arms compared", "About", "Metric"),
    )
    corrected = "p < 0.05 after Holm's correction for their number"
    if results.plan.ablation.on_demand:
        corrected = (
            "all looks together err in at most 5 % of ablations (Lan-DeMets, Holm); p-values are as they are at a look"
        )
    notes = [f"Verdicts hold for all claims together: {corrected}."]
    notes[0] += " Intervals are marginal: each covers with 95 % alone."
    notes += ["Equal: two one-sided tests place the difference within the margin, corrected alike."] if margins else []
    notes += _looks_note(results)
    return Table("claims", "Claims and what these runs say about them", heads, rows, tuple(notes))


def _looks_note(results: Results) -> list[str]:
    """How far the seeds on demand have come, and whether seeds were added otherwise, a sentence each."""
    plan, seeds = results.plan, len(results.plan.ablation.seed_list)
    if fewer := [first for first in results.first_seeds.values() if first < seeds]:
        first = f"{count(len(fewer), 'claim')} first planned with {count(min(fewer), 'seed')}"
        return [f"An unplanned look: {first}, now {seeds}. The error rate does not account for what was seen before."]
    if (demand := plan.ablation.on_demand) is None:
        return []
    if not plan.looks:
        return [f"Seeds on demand: the first look comes when every arm has {demand.least} seeds."]
    last, sizes = plan.looks[-1], ", ".join(str(look.seeds) for look in plan.looks)
    done = f"{count(last.number, 'look')} (at {sizes} seeds), after {count(len(last.runs), 'run')}"
    done += f" and {last.hours:.3g} device-hours"
    if last.is_last:
        return [f"Seeds on demand: {done}. No claim is open to more seeds."]
    return [
        f"Seeds on demand: {done}. The next look comes at {max(last.more.values())} seeds of {', '.join(last.more)}."
    ]


def references_table(results: Results, column: Callable[[str], Column]) -> Table | None:
    """Numbers reported by others, next to ours.

    Args:
        column: function that returns the column of a metric.
    """
    references, published = results.plan.ablation.references, results.plan.ablation.published
    if not references:
        return None
    rows = tuple(
        (
            TableCell(published[one.arm].label if one.arm in published else results.labels[one.arm]),
            TableCell(one.metric),
            TableCell(f"{value(one.metric, one.value)}{unit(one.metric)}"),
            *_beside(results, column(one.metric).arms.get(one.arm), one),
            TableCell(clean(one.source)),
            TableCell(clean(one.protocol)),
        )
        for one in references
    )
    heads = (
        *words("Arm", "Metric"),
        *numbers("reported", "ours", "ours − reported [95 % interval]"),
        *words("Source", "Its protocol"),
    )
    note = "The interval is that of our mean; what is reported comes without one, from another data set or protocol."
    notes = (note, *(f"{NO_ARM.capitalize()} of {one.label}: {clean(one.reason)}" for one in published.values()))
    return Table("references", "Reported numbers beside ours", heads, rows, notes)


def mean_entry(results: Results, column: Column, arm: str) -> TableCell:
    """An arm's mean in a column, marked if it is not comparable; or the reason why there is none."""
    one = column.arms[arm]
    if one.summary is None:
        return TableCell(why_empty(results, arm), muted=True)
    text = mean(column.metric, one.summary) + (" †" if one.foreign else "") + (f" ({one.level})" if one.level else "")
    return TableCell(text, best=arm in column.best and len(column.comparable) > 1)


def why_empty(results: Results, arm: str) -> str:
    """Why no seed of an arm has a value: the cause of a failed run, else the state of its runs."""
    causes = [run.cause for run in results.by_arm[arm] if run.cause]
    gravest = (cause for state in _GRAVITY for cause in causes if cause.startswith(state))
    return next(gravest, "not measured")


def _seeds_entry(results: Results, column: Column, arm: str) -> TableCell:
    found, planned = len(column.arms[arm].values), len(results.by_arm[arm])
    return TableCell(str(found) if found == planned else f"{found} of {planned}", muted=found == 0)


def difference_entries(results: Results, column: Column, arm: str) -> list[TableCell]:
    """An arm's difference to the baseline with its interval, and its corrected p-value."""
    one, baseline = column.arms[arm], results.plan.ablation.baseline
    if arm == baseline:
        return [TableCell("baseline", muted=True), EMPTY]
    if one.difference is None:
        return [EMPTY, EMPTY]
    pairs = "" if one.difference.n == len(one.values) else f", {one.difference.n} of its seeds"
    mark = "" if common_factor(results.fields[arm]) else " §"
    if level := shared_level(column, arm, baseline):
        return [TableCell(f"{signed(column.metric, one.difference.mean)} ({LEVELS[level]})", muted=True), EMPTY]
    return [
        TableCell(difference(column.metric, one.difference) + pairs + mark, best=is_shown(one)),
        TableCell(p_value(one.holm_p), muted=one.holm_p is None),
    ]


def _several_parts(results: Results, column: Column) -> list[str]:
    """Which arms differ from the baseline in several parts, so that no part explains their difference."""
    mixed = [
        f"{results.labels[arm]} ({listed(fields)})"
        for arm, fields in results.fields.items()
        if fields and not common_factor(fields) and column.arms[arm].difference is not None
    ]
    more = f"; and {len(mixed) - 6} more arms" if len(mixed) > 6 else ""
    return [f"§ Differs in several parts, none of which explains Δ alone: {'; '.join(mixed[:6])}{more}."] * bool(mixed)


def _levels(column: Column) -> list[str]:
    chance = next((arm.chance for arm in column.arms.values() if arm.level == "chance"), None)
    found = []
    if chance is not None:
        guess = f"{value(column.metric, chance)}{unit(column.metric)}"
        found.append(f"(chance): not above what guessing reaches, {guess}, by two standard errors over the samples.")
    if any(arm.level == "ceiling" for arm in column.arms.values()):
        found.append("(ceiling): fails in at most three samples, so a better arm would look the same.")
    return found


def _reference_entries(column: Column, arm: str, references: dict[str, Reference]) -> list[TableCell]:
    if arm not in references:
        return [EMPTY, EMPTY]
    one, summary = references[arm], column.arms[arm].summary if arm in column.arms else None
    reported = TableCell(f"{value(one.metric, one.value)} ‡")
    return [reported, TableCell(signed(one.metric, summary.mean - one.value)) if summary else EMPTY]


def _beside(results: Results, ours: ArmValue | None, reference: Reference) -> list[TableCell]:
    if ours is None:
        return [TableCell(NO_ARM, muted=True), EMPTY]
    metric, summary = reference.metric, ours.summary
    if summary is None:
        return [TableCell(why_empty(results, ours.arm), muted=True), EMPTY]
    text = signed(metric, summary.mean - reference.value)
    if summary.interval is not None:
        low, high = summary.interval.low - reference.value, summary.interval.high - reference.value
        text += f" {interval(metric, type(summary.interval)(low, high))}"
    return [TableCell(mean(metric, summary)), TableCell(text)]


def _arms_notes(results: Results, column: Column, several: bool, referenced: bool) -> list[str]:
    best = "highest" if higher_is_better(column.metric) else "lowest"
    notes = [f"Bold: the {best} mean of a column."]
    if several:
        notes[0] += " A difference in bold: p < 0.05 after Holm's correction for the number of arms."
        notes.append(f"{METHODS[results.plan.ablation.estimation]} In brackets the marginal 95 % interval of each Δ.")
        notes.append(f"Baseline: {results.labels[results.plan.ablation.baseline]}.")
        notes += _several_parts(results, column)
    notes += _levels(column)
    if any(arm.foreign for arm in column.arms.values()):
        notes.append("† Measured under another protocol than the baseline: not comparable within its column.")
    if referenced:
        notes.append("‡ Reported by others under their own protocol, as the table of reported numbers says.")
    return notes
