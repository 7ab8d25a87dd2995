"""The answer in one sentence, and a verdict on each claim, both backed by confidence intervals and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

from harness.config.ablation import Claim, margin_size
from harness.planning.isolation import Isolation, common_factor, isolation, listed
from harness.planning.looks import InterimLook, LookedClaim, LookWord
from harness.reporting.collect.comparison import ArmValue, Column, Level, difference_between, shared_level
from harness.reporting.collect.results import Results
from harness.reporting.formats.numbers import compared, count, difference, higher_is_better, mean, named, unit, value
from harness.statistics import CONFIDENCE, Difference, Evidence, Judged, Rounds, holm

Word = Literal["better", "worse", "equal", "open", "both at chance", "both at the ceiling"]
Verdicted = Literal["not attributable", "not comparable", "no result"] | Word
LEVELS: dict[Level, Word] = {"chance": "both at chance", "ceiling": "both at the ceiling"}


@dataclass(frozen=True)
class Answer:
    """The answer to the ablation's question from the results so far."""

    sentence: str
    details: tuple[str, ...] = ()
    """More sentences: how many arms differ from the baseline, and whether the best two arms differ."""


@dataclass(frozen=True)
class Verdict:
    """Verdict on a claim."""

    claim: Claim
    metric: str
    isolation: Isolation
    difference: Difference | None
    margin: str | None
    word: Verdicted
    p: float | None = None
    """Of no difference, after Holm's correction for the number of claims. None for a claim that is not judged."""
    equality_p: float | None = None
    """Of a difference beyond the margin, corrected in the same way. None without a margin too."""
    looked: LookedClaim | None = None
    """What the last look said of it, if seeds are added on demand. The p-values are then that look's, not corrected."""

    @property
    def is_decided(self) -> bool:
        """Whether the runs settle the claim."""
        return self.word in ("better", "worse", "equal")

    @property
    def text(self) -> str:
        """The verdict in words."""
        match self.word:
            case "equal":
                return f"equal within {self.margin}" + (f" (look {self.looked.look})" if self.looked else "")
            case "not attributable":
                return self.isolation.why_not
            case "open" if self.looked and self.looked.word == "given up":
                return "open (more seeds would hardly decide it)"
            case "better" | "worse" if self.looked:
                since = self.difference.interval if self.difference else None
                doubt = "; the interval of all seeds holds zero" if since and not since.excludes_zero else ""
                return f"{self.word} (look {self.looked.look}{doubt})"
            case "open":
                return "open (one seed shows no spread)" if self.difference and self.difference.n == 1 else "open"
            case word:
                return word

    @property
    def subject(self) -> str:
        """What the claim is about: its factor, or whole systems."""
        if self.claim.compares == "systems":
            return "whole systems"
        return self.isolation.factor or listed(self.isolation.fields)


def answer(results: Results, column: Column) -> Answer:
    """The answer from the primary metric's column."""
    ranked = column.comparable
    if not ranked:
        return Answer("There is no answer yet: no run has a result for the primary metric.")
    done, planned = sum(len(arm.values) for arm in column.arms.values()), len(results.runs)
    so_far = f"So far, with {done} of {count(planned, 'run')}: " if done < planned else ""
    sentence = _sentence(results, column, ranked)
    return Answer(so_far + sentence, tuple(_details(results, column, ranked)))


def verdicts(results: Results, column: Callable[[str], Column]) -> list[Verdict]:
    """A verdict on every claim. The claims that can be judged are corrected as one family.

    Args:
        column: function that returns the column of a metric.
    """
    found = _unjudged_claims(results, column)
    if results.plan.ablation.on_demand:
        last = results.plan.looks[-1].claims if results.plan.looks else []
        return [_as_looked(*pair) for pair in zip_longest(found, last)]
    judged = [place for place, one in enumerate(found) if one.word == "open" and one.difference is not None]
    evidence = [_evidence(found[place]) for place in judged]
    different, equal = holm([one.p for one in evidence]), holm([one.equality_p for one in evidence])
    for place, p, same in zip(judged, different, equal, strict=True):
        found[place] = _judged(replace(found[place], p=p, equality_p=same))
    return found


def take_look(results: Results, column: Callable[[str], Column], taken_at: float) -> InterimLook:
    """Look at the claims that the looks of the plan have left open. All runs of the plan must be done.

    Args:
        column: function that returns the column of a metric.
        taken_at: Unix time.
    """
    plan = results.plan
    demand, number = plan.ablation.on_demand, len(plan.looks)
    assert demand is not None
    sizes, found = demand.looks, _unjudged_claims(results, column)
    claims = {place: one for place, one in enumerate(plan.looks[-1].claims if plan.looks else ()) if one.word != "open"}
    fresh = {place: one for place, one in enumerate(found) if place not in claims}
    open_ = {place: _evidence(one) for place, one in fresh.items() if one.word == "open"}
    settled = [_JUDGED[one.word] for one in claims.values() if one.word != "not judged"]
    judged = dict(zip(open_, Rounds(sizes).judge([*open_.values()], number, settled), strict=True))
    for place, one in fresh.items():
        claims[place] = _looked(one, _look_word(one, judged.get(place)), number + 1, open_.get(place))
    going = [found[place].claim for place in open_ if claims[place].word == "open"]
    arms = {plan.ablation.baseline, *(arm for claim in going for arm in (claim.arm, claim.than))} if going else set()
    return InterimLook(
        number=number + 1,
        seeds=sizes[number],
        claims=tuple(claims[place] for place in range(len(found))),
        more={arm.name: sizes[number + 1] for arm in plan.arms if arm.name in arms},
        runs={f"{arm}/{seed}": run for (arm, seed), run in plan.cells.items()},
        hours=sum(run.record.cost.device_hours for run in (*results.runs, *results.teachers) if run.record),
        taken_at=taken_at,
    )


def is_shown(arm: ArmValue) -> bool:
    """Whether an arm differs from the baseline after Holm's correction."""
    return arm.holm_p is not None and arm.holm_p < 1 - CONFIDENCE


def _sentence(results: Results, column: Column, ranked: Sequence[ArmValue]) -> str:
    labels, metric, baseline = _names(results), column.metric, results.plan.ablation.baseline
    best = ranked[0]
    assert best.summary is not None
    level = f"{mean(metric, best.summary)}{unit(metric)}"
    if best.level == "chance" and best.chance is not None and len(ranked) > 1:
        guess = f"{value(metric, best.chance)}{unit(metric)}"
        return f"No arm is above chance in {metric} ({guess}): the best, {labels[best.arm]}, reaches {level}."
    if len(column.arms) == 1:
        return f"{labels[best.arm]} reaches {level} in {metric} ({count(best.summary.n, 'seed')})."
    if not column.arms[baseline].values:
        top = "highest" if column.higher_is_better else "lowest"
        return f"The baseline {labels[baseline]} has no result in {metric}; {labels[best.arm]} is {top}: {level}."
    others = [arm for arm in ranked if arm.difference is not None]
    if not others:
        return f"Only {labels[best.arm]} has a result in {metric} that can be compared: {level}."
    shown = [arm for arm in others if is_shown(arm) and arm.difference and column.gain(arm.difference) > 0]
    if best in shown:
        return _better(results, column, best, level)
    return _not_better(results, column, others, best, shown)


def _better(results: Results, column: Column, best: ArmValue, level: str) -> str:
    assert best.difference is not None
    delta = difference(column.metric, best.difference, with_points=True)
    baseline = _names(results)[results.plan.ablation.baseline]
    proof = f"{count(best.difference.n, 'seed')}, Holm p {compared(best.holm_p)}"
    found = f"{_names(results)[best.arm]} is best in {column.metric}: {level}, {delta} against {baseline} ({proof})"
    return f"{found}{_several(results, best.arm)}."


def _several(results: Results, arm: str) -> str:
    """That an arm differs from the baseline in several parts, so that its difference belongs to none of them."""
    fields = results.fields[arm]
    return "" if common_factor(fields) else f"; they differ in {listed(fields)}"


def _not_better(
    results: Results, column: Column, others: Sequence[ArmValue], best: ArmValue, shown: Sequence[ArmValue]
) -> str:
    labels = _names(results)
    baseline = labels[results.plan.ablation.baseline]
    top = others[0]
    assert top.difference is not None
    delta = difference(column.metric, top.difference, with_points=True)
    if top.difference.n == 1:
        return f"Nothing can be claimed from one seed: {labels[top.arm]} comes out at {delta} against {baseline}."
    if best.arm == results.plan.ablation.baseline:
        close = f"the nearest, {labels[top.arm]}, is at {delta}"
        return f"No arm is shown to be better than {baseline}, which has the best mean; {close}."
    seeds = count(top.difference.n, "seed")
    told = f"{labels[top.arm]} has the best mean, {delta}, but cannot be told apart from {baseline} with {seeds}"
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    also = f"; {', '.join(labels[arm.arm] for arm in shown[:3])}{more} can" if shown else ""
    return f"{told}{also}."


def _details(results: Results, column: Column, ranked: Sequence[ArmValue]) -> list[str]:
    others = [arm for arm in ranked if arm.difference is not None and arm.difference.n > 1]
    found = []
    if len(others) > 1:
        gains = [column.gain(arm.difference) for arm in others if is_shown(arm) and arm.difference]
        found.append(f"{_counted(gains, len(others))} (Holm's correction, 5 %).")
    if len(ranked) > 1 and ranked[0].arm != results.plan.ablation.baseline and is_shown(ranked[0]):
        found += _runner_up(results, column, ranked[0], ranked[1])
    return found


def _counted(gains: list[float], others: int) -> str:
    """Sentence that counts how many of `others` arms are better or worse; `gains` are those of arms that differ."""
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    parts = [(better, "better than the baseline"), (worse, "worse than the baseline")]
    said = [f"{number} {'is' if number == 1 else 'are'} shown to be {how}" for number, how in parts if number]
    unsettled = others - better - worse
    if unsettled == others:
        return f"Not one of the {others} other arms can be told apart from the baseline"
    said += [f"{unsettled} cannot be told apart from it"] if unsettled else []
    return f"Of {others} other arms, {', '.join(said)}"


def _runner_up(results: Results, column: Column, best: ArmValue, second: ArmValue) -> list[str]:
    delta = difference_between(column, best.arm, second.arm)
    if second.arm == results.plan.ablation.baseline or delta is None or delta.interval is None:
        return []
    labels = _names(results)
    names = f"{labels[best.arm]} and the runner-up {labels[second.arm]}"
    how = difference(column.metric, delta, with_points=True)
    if delta.interval.excludes_zero:
        return [f"{names} differ by {how}."]
    return [f"{names} cannot be told apart: {how}."]


def _names(results: Results) -> dict[str, str]:
    """Names of arms in sentences."""
    return {arm: named(label) for arm, label in results.labels.items()}


_JUDGED: dict[LookWord, Judged] = {
    "better": "different",
    "worse": "different",
    "equal": "equal",
    "given up": "given up",
}


def _look_word(one: Verdict, judged: Judged | None) -> LookWord:
    match judged:
        case None:
            return "not judged"
        case "different":
            return _direction(one)
        case _:
            return judged


def _looked(one: Verdict, word: LookWord, look: int, seen: Evidence | None) -> LookedClaim:
    """What a look says of a claim; `seen` is None for one that is not judged."""
    if seen is None:
        return LookedClaim(text=one.claim.text, word=word, look=look)
    mean, error = (seen.difference.mean, seen.difference.error) if seen.difference else (None, None)
    p, equality_p = seen.p, seen.equality_p
    return LookedClaim(text=one.claim.text, word=word, look=look, mean=mean, error=error, p=p, equality_p=equality_p)


def _as_looked(one: Verdict, looked: LookedClaim | None) -> Verdict:
    """The verdict that the last look gave; later seeds do not change it."""
    if looked is None or looked.word == "not judged":
        return one
    word: Word = "open" if looked.word == "given up" else looked.word
    return replace(one, word=word, p=looked.p, equality_p=looked.equality_p, looked=looked)


def _unjudged_claims(results: Results, column: Callable[[str], Column]) -> list[Verdict]:
    ablation = results.plan.ablation
    return [_unjudged(results, claim, column(claim.metric or ablation.primary)) for claim in ablation.claims]


def _unjudged(results: Results, claim: Claim, column: Column) -> Verdict:
    """The verdict on a claim that its numbers cannot change, or `open`."""
    ours, theirs = column.arms[claim.arm], column.arms[claim.than]
    isolated = isolation(claim, results.plan.experiments)
    word: Verdicted = "open"
    if not ours.values or not theirs.values:
        word = "no result"
    elif ours.identity != theirs.identity:
        word = "not comparable"
    elif level := shared_level(column, claim.arm, claim.than):
        word = LEVELS[level]
    elif isolated.besides:
        word = "not attributable"
    delta = difference_between(column, claim.arm, claim.than)
    return Verdict(claim, column.metric, isolated, delta, results.plan.ablation.margin_of(claim), word)


def _judged(one: Verdict) -> Verdict:
    """`equal` comes before `better`: the margin says which differences do not matter."""
    if one.equality_p is not None and one.equality_p < 1 - CONFIDENCE:
        return replace(one, word="equal")
    if one.p is None or one.p >= 1 - CONFIDENCE or one.difference is None:
        return one
    return replace(one, word=_direction(one))


def _direction(one: Verdict) -> Literal["better", "worse"]:
    assert one.difference is not None
    return "better" if (one.difference.mean > 0) == higher_is_better(one.metric) else "worse"


def _evidence(one: Verdict) -> Evidence:
    return Evidence(one.difference, margin_size(one.margin)[0] if one.margin else None)
