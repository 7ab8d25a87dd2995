"""A metric over all arms: means, paired differences to the baseline, and never two identities in one number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Literal

from harness.reporting.collect.results import Measured, Results, most_common
from harness.reporting.formats.numbers import higher_is_better, value
from harness.runs.metrics import is_share
from harness.statistics import CONFIDENCE, Difference, Estimator, Interval, Summary, holm, summarise, t_interval

Level = Literal["", "chance", "ceiling"]
ABOVE_CHANCE = 2.0
"""Standard errors over the samples by which an arm's mean has to exceed chance."""
FAILURES = 3
"""An arm is at the ceiling if it fails in so few samples: with none of n failed, 3 / n bounds its error at 95 %."""


@dataclass(frozen=True)
class ArmValue:
    """One arm in a column."""

    arm: str
    values: Mapping[int, float]
    """By seed; all of one identity."""
    protocol_id: str | None
    identity: str | None
    """Of the metric: what its value depends on besides the weights."""
    standard_error: float | None
    """Over the evaluation samples, mean over seeds."""
    samples: int | None
    left_out: tuple[int, ...]
    """Seeds that were measured, but not under `identity`."""
    foreign: bool
    """Measured under another protocol than the rest of the column: marked, and compared with nothing."""
    chance: float | None = None
    """Value of a model that guesses; None where that is not known."""
    has_ceiling: bool = False
    """It is a share of samples."""
    summary: Summary | None = None
    difference: Difference | None = None
    """To the baseline."""
    holm_p: float | None = None
    """Of the difference, corrected for the arms of this column."""
    simultaneous: Interval | None = None
    """Of the difference: all arms' intervals together cover with 95 % (Bonferroni)."""

    @property
    def level(self) -> Level:
        """Where the metric cannot tell arms apart: at chance, or at its ceiling."""
        if self.summary is None or not self.samples:
            return ""
        mean, n, chance = self.summary.mean, self.samples, self.chance
        if chance is not None and mean <= chance + ABOVE_CHANCE * math.sqrt(chance * (1 - chance) / n):
            return "chance"
        return "ceiling" if self.has_ceiling and mean >= 1 - FAILURES / n else ""


@dataclass(frozen=True)
class Column:
    """One metric of all arms."""

    metric: str
    protocol_id: str | None
    """The protocol of `identity`."""
    identity: str | None
    """Of the metric as the baseline has it, or the most frequent one if the baseline has no result."""
    arms: Mapping[str, ArmValue]
    estimators: Mapping[str | None, Estimator] = field(default_factory=dict)
    """By identity of the metric, of all arms that have it."""

    @cached_property
    def comparable(self) -> tuple[ArmValue, ...]:
        """Arms with a value under the column's protocol, best mean first."""
        found = [arm for arm in self.arms.values() if arm.summary is not None and not arm.foreign]
        found.sort(key=lambda arm: arm.summary.mean if arm.summary else 0, reverse=self.higher_is_better)
        return tuple(found)

    @property
    def higher_is_better(self) -> bool:
        """Which way this column is read."""
        return higher_is_better(self.metric)

    @cached_property
    def best(self) -> frozenset[str]:
        """The arms whose mean is the best as printed."""
        printed = {arm.arm: value(self.metric, arm.summary.mean) for arm in self.comparable if arm.summary}
        return frozenset(arm for arm, text in printed.items() if text == next(iter(printed.values())))

    def gain(self, delta: Difference) -> float:
        """A difference with the sign turned so that positive is better."""
        return delta.mean if self.higher_is_better else -delta.mean


def compare_arms(results: Results, metric: str) -> Column:
    """The column of `metric`.

    Seeds measured under another protocol than the column's are left out of an arm's mean. An arm that has
    no seed under the column's protocol is shown under its own, marked, and without a difference.
    """
    baseline = results.plan.ablation.baseline
    measured = {
        arm: {run.seed: run.measured[metric] for run in runs if metric in run.measured}
        for arm, runs in results.by_arm.items()
    }
    everything = [one for seeds in measured.values() for one in seeds.values()]
    identity = _usual(measured[baseline].values()) or _usual(everything)
    arms = {arm: _arm_value(metric, arm, seeds, identity) for arm, seeds in measured.items()}
    method = results.plan.ablation.estimation
    estimators = {
        one: Estimator({arm.arm: arm.values for arm in arms.values() if arm.identity == one and arm.values}, method)
        for one in {arm.identity for arm in arms.values()}
    }
    column = Column(metric, _protocol_of(everything, identity), identity, arms, estimators)
    return replace(column, arms=_with_differences(column, baseline))


def difference_between(column: Column, arm: str, than: str) -> Difference | None:
    """The difference of two arms, or None where they have no seed or no protocol in common."""
    ours, theirs = column.arms[arm], column.arms[than]
    if ours.identity != theirs.identity or not ours.values or not theirs.values:
        return None
    return column.estimators[ours.identity].difference(arm, than)


def shared_level(column: Column, arm: str, than: str) -> Level:
    """`chance` or `ceiling` where both arms are there, so that their difference says nothing."""
    level = column.arms[arm].level
    return level if level == column.arms[than].level else ""


def _usual(measured: Iterable[Measured]) -> str | None:
    return most_common([one.identity for one in measured if one.identity is not None])


def _protocol_of(measured: Iterable[Measured], identity: str | None) -> str | None:
    return next((one.protocol_id for one in measured if one.identity == identity), None)


def _arm_value(metric: str, arm: str, seeds: Mapping[int, Measured], identity: str | None) -> ArmValue:
    own = identity if any(one.identity == identity for one in seeds.values()) else _usual(seeds.values())
    kept = {seed: one for seed, one in seeds.items() if one.identity == own}
    errors = [one.standard_error for one in kept.values() if one.standard_error is not None]
    values = {seed: one.value for seed, one in kept.items()}
    return ArmValue(
        arm=arm,
        values=values,
        protocol_id=_protocol_of(kept.values(), own),
        identity=own,
        standard_error=fmean(errors) if errors else None,
        samples=next((one.samples for one in kept.values()), None),
        left_out=tuple(sorted(seeds.keys() - kept.keys())),
        foreign=bool(values) and own != identity,
        chance=next((one.chance for one in kept.values()), None),
        has_ceiling=is_share(metric) and own is not None,
        summary=summarise(list(values.values())) if values else None,
    )


def _with_differences(column: Column, baseline: str) -> dict[str, ArmValue]:
    """Arms with their difference to the baseline. Where both are at chance or at the ceiling, it is not tested."""
    others = [name for name, arm in column.arms.items() if name != baseline and not arm.foreign]
    found = {name: difference_between(column, name, baseline) for name in others}
    tested = {
        name: one
        for name, one in found.items()
        if one and one.p is not None and not shared_level(column, name, baseline)
    }
    corrected = dict(zip(tested, holm([delta.p for delta in tested.values()]), strict=True))
    together = {
        name: t_interval(one.mean, one.error, one.df, 1 - (1 - CONFIDENCE) / len(tested))
        for name, one in tested.items()
        if one.error is not None and one.df is not None
    }
    return {
        name: replace(arm, difference=found.get(name), holm_p=corrected.get(name), simultaneous=together.get(name))
        for name, arm in column.arms.items()
    }
