"""Remarks for the reader, above all arms that differ in more than the ablation declares."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.reporting.collect.comparison import Column
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import clean, count
from harness.runs.record import Record
from harness.runs.suite_averages import holes

Differences = dict[str, dict[str, tuple[object, object]]]
_AMOUNT = ("train.duration", "train.global_batch_size", "data.")


@dataclass(frozen=True)
class Flag:
    """A remark at the top of a report."""

    level: Literal["warning", "note"]
    """`warning`: a comparison may be unfair. `note`: follows from the declaration, or is just worth knowing."""
    text: str


def flags(results: Results, columns: Sequence[Column], differences: Differences) -> list[Flag]:
    """All remarks, warnings first.

    Args:
        differences: `Plan.differences` of each arm but the baseline.
    """
    found = [
        *_unfinished(results),
        *_holes(results),
        *_doubts(results),
        *_sets(results),
        *_protocols(results, columns),
        *_amounts(results, differences),
        *_data(results, differences),
        *_precision(results, differences),
        *_versions(results),
        *_seeds(results, columns),
        *_references(results),
    ]
    return sorted(found, key=lambda flag: flag.level != "warning")


def _unfinished(results: Results) -> Iterable[Flag]:
    missing = Counter(run.cause for run in results.runs if run.record is None)
    if missing:
        causes = ", ".join(f"{number} {cause}" for cause, number in missing.items())
        yield Flag("warning", f"{count(missing.total(), 'run')} of {len(results.runs)} without a result: {causes}.")


def _holes(results: Results) -> Iterable[Flag]:
    asked = {suite for arm in results.plan.arms for suite in arm.experiment.evaluation.sets}
    # if a set is missing in one arm, the average is not comparable in any arm
    measured = [run.sets for run in results.done]
    everywhere = set.intersection(*map(set, measured)) if measured else set[str]()
    for suite, absent in holes(sorted(asked), everywhere).items() if measured else ():
        yield Flag("warning", f"No average over {suite}: {_listed(absent)} not measured in every run.")


def _doubts(results: Results) -> Iterable[Flag]:
    """Evaluation sets whose contents could not be compared with what the records are of."""
    doubts = Counter(doubt for run in results.runs for doubt in dict.fromkeys(run.doubts))
    for doubt, number in doubts.items():
        yield Flag("warning", f"{clean(doubt)} ({count(number, 'run')}).")


def _sets(results: Results) -> Iterable[Flag]:
    """What looks wrong about the evaluation sets."""
    notes = {
        f"{one.set}: {clean(note)}"
        for run in results.done
        if run.record is not None
        for one in run.record.evaluations
        for note in one.notes
    }
    yield from (Flag("note", f"Evaluation set {note}.") for note in sorted(notes))


def _protocols(results: Results, columns: Sequence[Column]) -> Iterable[Flag]:
    for column in columns:
        foreign = [results.labels[arm.arm] for arm in column.arms.values() if arm.foreign]
        if foreign:
            text = f"† {column.metric} of {_listed(foreign)} was measured under another protocol than the baseline's"
            yield Flag("warning", f"{text} ({column.protocol_id}): shown and marked, but not compared.")
        for arm in column.arms.values():
            if arm.left_out:
                seeds = f"{count(len(arm.left_out), 'seed')} of {results.labels[arm.arm]}"
                yield Flag("warning", f"{column.metric}: {seeds} left out, measured under another protocol.")


def _amounts(results: Results, differences: Differences) -> Iterable[Flag]:
    quantities: dict[str, Callable[[Record], int]] = {
        "samples seen": lambda record: record.samples_seen,
        "steps": lambda record: record.steps,
        "images a step": lambda record: record.samples_seen // max(record.steps, 1),
    }
    for name, quantity in quantities.items():
        for arms, (baseline, value), why in _unequal(results, differences, quantity):
            said = f"{_listed(arms)}: {value} {name}, the baseline {baseline}"
            if why:
                yield Flag("note", f"{said} (follows from {', '.join(why)}).")
            elif name != "images a step":  # the samples seen have said it
                yield Flag("warning", f"{said}, and nothing that the ablation declares explains it.")


def _unequal(
    results: Results, differences: Differences, quantity: Callable[[Record], int]
) -> Iterable[tuple[list[str], tuple[str, str], tuple[str, ...]]]:
    """Arms that differ from the baseline: (labels, (baseline's value, theirs), declared paths that explain it)."""
    expected = _quantities(results, results.plan.ablation.baseline, quantity)
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for arm in results.by_arm:
        found = _quantities(results, arm, quantity)
        if found and expected and found != expected:
            why = tuple(path for path in differences.get(arm, {}) if path.startswith(_AMOUNT))
            alike[found, why].append(results.labels[arm])
    for (found, why), arms in alike.items():
        yield arms, (expected, found), why


def _quantities(results: Results, arm: str, quantity: Callable[[Record], int]) -> str:
    """Values over an arm's finished runs."""
    return " or ".join(f"{n:,}" for n in sorted({quantity(run.record) for run in results.by_arm[arm] if run.record}))


def _data(results: Results, differences: Differences) -> Iterable[Flag]:
    used: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for run in results.done:
        if run.record is not None:
            used[run.arm].add((run.record.data.fingerprint, run.record.data.samples))
    expected = used.get(results.plan.ablation.baseline, set())
    other = [arm for arm, found in used.items() if expected and found != expected]
    silent = [arm for arm in other if not any(path.startswith("data.") for path in differences.get(arm, {}))]
    if silent:
        arms = _listed([results.labels[arm] for arm in silent])
        counts = [
            " or ".join(f"{samples:,}" for samples in sorted({samples for arm in some for _, samples in used[arm]}))
            for some in (silent, [results.plan.ablation.baseline])
        ]
        what = f"{counts[0]} samples against {counts[1]}"
        yield Flag("warning", f"{arms}: trained on other data than the baseline ({what}), which is not declared.")
    for fingerprint, report in results.plan.data.items():
        for sentence in report.census():
            yield Flag("note", f"Data {fingerprint[:12]}: {clean(sentence)}.")


def _precision(results: Results, differences: Differences) -> Iterable[Flag]:
    """Arms with another precision than the baseline, which only a declared field can cause."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for arm, found in differences.items():
        if "train.precision" in found:
            before, after = map(str, found["train.precision"])
            alike[before, after].append(results.labels[arm])
    for (before, after), arms in alike.items():
        yield Flag("note", f"{_listed(arms)}: trained in {after}, the baseline in {before} (declared).")


def _versions(results: Results) -> Iterable[Flag]:
    found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for run in results.done:
        if run.record is not None:
            for package, version in {"device": run.record.cost.device, **run.record.versions}.items():
                found[package][run.arm][version] += 1
    for package, by_arm in found.items():
        versions: Counter[str] = sum(by_arm.values(), Counter())
        if len(versions) > 1:
            text = ", ".join(f"{clean(version)} ({count(number, 'run')})" for version, number in versions.items())
            theirs = by_arm.get(results.plan.ablation.baseline, Counter())
            apart = [results.labels[arm] for arm, ours in by_arm.items() if theirs and not ours.keys() & theirs.keys()]
            mixed = f"; {_listed(apart)} with none of the baseline's" if apart else ""
            # every edit of the docs changes the commit; what can change a result is in the run's id
            level: Literal["warning", "note"] = "note" if package == "commit" and not apart else "warning"
            yield Flag(level, f"Runs were made with different {clean(package)}: {text}{mixed}.")


def _seeds(results: Results, columns: Sequence[Column]) -> Iterable[Flag]:
    primary = columns[0]
    single = [results.labels[arm.arm] for arm in primary.comparable if len(arm.values) == 1]
    if single:
        whose = "every arm" if len(single) == len(primary.arms) else _listed(single)
        yield Flag("note", f"One seed of {whose}: it has no spread and no interval, and nothing is claimed from it.")


def _references(results: Results) -> Iterable[Flag]:
    references = results.plan.ablation.references
    unknown = sum(one.protocol == "unknown" for one in references)
    if unknown:
        which = "one reported number" if unknown == 1 else f"{unknown} reported numbers"
        text = f"How {which} of {len(references)} {'was' if unknown == 1 else 'were'} measured is not known"
        yield Flag("note", f"{text}: shown beside ours, but not under the same protocol.")


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = "; ".join(names[:most])
    return shown if len(names) <= most else f"{shown}; and {len(names) - most} more"
