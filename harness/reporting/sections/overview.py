"""What a reviewer asks first of an ablation, each with a short answer from its plan and its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.planning.isolation import listed
from harness.reporting.collect.comparison import Column
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import clean, count, named
from harness.reporting.sections.answer import Verdict
from harness.reporting.sections.fairness import Differences

MOST_PARTS = 6


def overview(
    results: Results, column: Column, verdicts: Sequence[Verdict], differences: Differences
) -> tuple[tuple[str, str], ...]:
    """Pairs of a question's keyword and its answer.

    Args:
        column: of the primary metric.
        differences: `Plan.differences` of each arm but the baseline.
    """
    asked = {
        "Compared": _compared(results, column),
        "What differs": _differing(differences),
        "Seeds": _seeds(results),
        "Test": _test(results, verdicts),
        "Margin": _margin(verdicts),
        "Open or missing": _missing(results, verdicts),
        "Check it": _check(results),
    }
    return tuple((keyword, answer) for keyword, answer in asked.items() if answer)


def _compared(results: Results, column: Column) -> str:
    baseline = named(results.labels[results.plan.ablation.baseline])
    better = "higher" if column.higher_is_better else "lower"
    arms = count(len(results.by_arm), "arm")
    return f"{arms} in {column.metric} ({better} is better). The baseline is {baseline}."


def _differing(differences: Differences) -> str:
    parts = tuple(dict.fromkeys(path.partition(".")[0] for found in differences.values() for path in found))
    return (
        f"{listed(parts, MOST_PARTS)}. Every other field that can change a result is equal in all arms."
        if parts
        else ""
    )


def _seeds(results: Results) -> str:
    ablation = results.plan.ablation
    if demand := ablation.on_demand:
        taken = count(len(results.plan.looks), "look")
        return f"{demand.least} to {demand.most} an arm, added until the claims are decided; {taken} so far."
    number = len(ablation.seed_list)
    if number == 1:
        return "1 an arm. One seed shows no spread, so nothing can be claimed."
    return f"{number} an arm, the same in all arms; differences are taken seed by seed."


def _test(results: Results, verdicts: Sequence[Verdict]) -> str:
    ablation = results.plan.ablation
    if len(ablation.seed_list) == 1:
        return ""
    error = {"shared": "t-test, variances shared among arms", "paired": "paired t-test"}[ablation.estimation]
    family = count(len(verdicts), "claim") if verdicts else "arms"
    corrected = f"Holm's correction for {'all ' if len(verdicts) != 1 else ''}{family}, 5 %"
    if ablation.on_demand:
        corrected = f"group-sequential (Lan-DeMets), {corrected} over all looks"
    return f"Two-sided {error}; {corrected}. Intervals cover 95 % over new seeds."


def _margin(verdicts: Sequence[Verdict]) -> str:
    margins = dict.fromkeys(clean(one.margin) for one in verdicts if one.margin)
    if not verdicts:
        return ""
    if not margins:
        return "None was declared, so no claim can end as equal."
    return f"{' or '.join(margins)}: differences that are shown to be smaller count as equal."


def _missing(results: Results, verdicts: Sequence[Verdict]) -> str:
    left = len(results.runs) - len(results.done)
    runs = (
        f"{left} of {count(len(results.runs), 'run')} missing." if left else f"All {len(results.runs)} runs are done."
    )
    undecided = Counter(one.word for one in verdicts if not one.is_decided)
    claims = [f"{count(number, 'claim')} {word}" for word, number in undecided.items()]
    return " ".join([runs, *([f"{', '.join(claims)}."] if claims else [])])


def _check(results: Results) -> str:
    file = results.plan.file
    spec = clean(file.name) if file else "SPEC"
    return f"harness verify {spec} derives every number again from the outcomes of single samples."
