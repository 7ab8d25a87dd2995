"""A metric over all arms: means, paired differences to the baseline, and never two identities in one number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from harness.reporting.collect.results import Measured, Results, most_common
from harness.reporting.formats.numbers import higher_is_better, value
from harness.statistics import Difference, Summary, holm, paired_difference, summarise


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
    summary: Summary | None = None
    difference: Difference | None = None
    """To the baseline."""
    holm_p: float | None = None
    """Of the difference, corrected for the arms of this column."""


@dataclass(frozen=True)
class Column:
    """One metric of all arms."""

    metric: str
    protocol_id: str | None
    """The protocol of `identity`."""
    identity: str | None
    """Of the metric as the baseline has it, or the most frequent one if the baseline has no result."""
    arms: Mapping[str, ArmValue]

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
    arms = {arm: _arm_value(arm, seeds, identity) for arm, seeds in measured.items()}
    return Column(metric, _protocol_of(everything, identity), identity, _with_differences(arms, baseline))


def difference_between(column: Column, arm: str, than: str) -> Difference | None:
    """The paired difference of two arms, or None where they have no seed or no protocol in common."""
    ours, theirs = column.arms[arm], column.arms[than]
    return paired_difference(ours.values, theirs.values) if ours.identity == theirs.identity else None


def _usual(measured: Iterable[Measured]) -> str | None:
    return most_common([one.identity for one in measured if one.identity is not None])


def _protocol_of(measured: Iterable[Measured], identity: str | None) -> str | None:
    return next((one.protocol_id for one in measured if one.identity == identity), None)


def _arm_value(arm: str, seeds: Mapping[int, Measured], identity: str | None) -> ArmValue:
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
        summary=summarise(list(values.values())) if values else None,
    )


def _with_differences(arms: Mapping[str, ArmValue], baseline: str) -> dict[str, ArmValue]:
    others = {
        name: paired_difference(arm.values, arms[baseline].values)
        for name, arm in arms.items()
        if name != baseline and not arm.foreign
    }
    corrected = dict(zip(others, holm([delta.p if delta else None for delta in others.values()]), strict=True))
    return {name: replace(arm, difference=others.get(name), holm_p=corrected.get(name)) for name, arm in arms.items()}
