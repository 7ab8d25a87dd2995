"""Derive the numbers of a report again from the metrics and outcomes of its runs, without the code that made them.

Means, intervals, p-values, the claims, and the two errors follow the description in docs/statistics.md.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from harness.config.ablation import margin_size
from harness.execute.verify import CHOICES, CLOSE, Verification, agree, outcomes_of

_Values: TypeAlias = Mapping[str, Mapping[str, float]]
"""Of one metric, by arm and seed."""
_Name = TypeVar("_Name", str, int)


@dataclass(frozen=True)
class Derived:
    """A difference between two arms; None where seeds do not tell it."""

    n: int
    mean: float
    sd: float | None
    error: float | None = None
    """Standard error of the mean."""
    df: float | None = None

    def interval(self, confidence: float = 0.95) -> tuple[float | None, float | None]:
        """The two-sided t-interval."""
        return _interval(self.mean, self.error, self.df, confidence)

    @property
    def p(self) -> float | None:
        """Of the two-sided t-test against 0."""
        return self._tail(-abs(self.mean), 2)

    def equality_p(self, margin: float) -> float | None:
        """Of the larger of two one-sided t-tests, against `margin` and against `-margin`."""
        return self._tail(abs(self.mean) - margin, 1)

    def _tail(self, distance: float, sides: int) -> float | None:
        from scipy import stats

        if self.error is None or self.df is None:
            return None
        return float(sides * stats.t.cdf(distance / self.error, self.df))

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """In the order of `_told`."""
        return (self.n, self.mean, self.sd, *self.interval(), self.p, self.error, self.df)


def verify_report(report: str, found: Verification) -> None:
    """Derive the numbers of a report from the runs' metrics and outcomes again.

    Args:
        report: the report as JSON.
        found: with the metrics and folders of its runs.
    """
    table = json.loads(report)
    runs = {(run["arm"], str(run["seed"])): run["id"] for run in table["runs"] if run["arm"] is not None}
    shared, known = table["estimation"] == "shared", dict[str, tuple[Mapping[str, Any], _Values]]()
    for column in table["metrics"]:
        of, _, metric = column["metric"].partition("/")
        values: dict[str, dict[str, float]] = {}
        for arm in column["arms"]:
            keys = {seed: (runs[arm["arm"], seed], of, arm["protocol_id"] or "", metric) for seed in arm["values"]}
            values[arm["arm"]] = {seed: found.derived[key] for seed, key in keys.items() if key in found.derived}
        _column(column, table["baseline"], values, shared, found)
        known[column["metric"]] = column, values
    if not table.get("looks"):  # whose p-values are of other seeds; they are taken again
        _claims(table["claims"], known, shared, found)
    if table.get("errors"):
        _errors(table["errors"], *known[table["primary"]], table["baseline"], shared, runs, found)


def _claims(
    claims: Sequence[Mapping[str, Any]],
    known: Mapping[str, tuple[Mapping[str, Any], _Values]],
    shared: bool,
    found: Verification,
) -> None:
    """Derive the difference of each claim, and its p-values after Holm's correction for the claims that are judged:
    that there is a difference, and that it lies within the margin.
    """
    different, equal = dict[int, float](), dict[int, float]()
    for place, claim in enumerate(claims):
        if claim["difference"] is None:
            continue
        column, values = known.get(claim["metric"], ({"arms": ()}, {}))
        if claim["metric"] not in known or _left_out(column, values):
            found.unproven.append(
                f"the difference of claim {claim['text']!r} is not derived again: not all runs could be"
            )
            return
        derived = _difference(column, values, claim["arm"], claim["than"], shared)
        _compare(found, _claim(claim), _told(claim["difference"]), derived.numbers)
        if claim["p"] is not None and derived.p is not None:
            different[place] = derived.p
        if (
            claim.get("equality_p") is not None
            and (p := derived.equality_p(margin_size(claim["margin"])[0])) is not None
        ):
            equal[place] = p
    for key, adjusted in (("p", _holm(different)), ("equality_p", _holm(equal))):
        for place, p in adjusted.items():
            _compare_p(found, _claim(claims[place]), key, claims[place][key], p)


def _claim(claim: Mapping[str, Any]) -> str:
    return f"the report's claim {claim['text']!r}"


def _errors(
    errors: Sequence[Mapping[str, Any]],
    column: Mapping[str, Any],
    values: _Values,
    baseline: str,
    shared: bool,
    runs: Mapping[tuple[str, str], str],
    found: Verification,
) -> None:
    """Derive what another test set would change about each difference, from the outcomes of single samples."""
    of, _, metric = column["metric"].partition("/")
    protocols = {arm["arm"]: arm["protocol_id"] for arm in column["arms"]}
    theirs = {seed: _right(runs[baseline, seed], of, protocols[baseline], metric, found) for seed in values[baseline]}
    for one in errors:
        arm = one["arm"]
        where = f"the report's two errors of {arm}"
        seeds = [seed for seed in values[arm] if seed in theirs]
        ours = [_right(runs[arm, seed], of, protocols[arm], metric, found) for seed in seeds]
        pairs = list(zip(ours, (theirs[seed] for seed in seeds), strict=True))
        samples = [mine.keys() for pair in pairs for mine in pair]
        if not samples or not samples[0] or any(keys != samples[0] for keys in samples) or _left_out(column, values):
            found.unproven.append(f"{where} are not derived again: not all runs have outcomes of {column['metric']}")
            continue
        deltas = [{key: hit - other[key] for key, hit in mine.items()} for mine, other in pairs]
        delta = _difference(column, values, arm, baseline, shared)
        intervals = [one["another_training"], one["another_test_set"], one["both"]]
        told = [*(bound for interval in intervals for bound in _bounds(interval)), one["standard_error_test_set"]]
        _compare(found, where, told, _two_errors(deltas, delta))


def _two_errors(deltas: Sequence[Mapping[tuple[str, str], float]], delta: Derived) -> list[float | None]:
    """Bounds of the intervals of another training, of another test set and of both, and the error of the second.

    Args:
        deltas: by seed, then by (group, sample): the difference of the outcomes.
        delta: the difference over seeds.
    """
    seeds, samples = len(deltas), len(deltas[0])
    means = [math.fsum(one.values()) / samples for one in deltas]
    sums: dict[str, list[float]] = {}
    for seed, (one, mean) in enumerate(zip(deltas, means, strict=True)):
        for (group, _), value in one.items():
            sums.setdefault(group, [0.0] * seeds)[seed] += value - mean
    count = len(sums)
    scale = count / (count - 1) / samples**2
    variance = scale * math.fsum(statistics.fmean(one) ** 2 for one in sums.values())
    residual = 0.0
    if seeds > 1:
        left = math.fsum(statistics.variance(one) for one in sums.values())
        residual = scale * left / seeds
    alone = max(variance - residual, 0.0)
    both: tuple[float | None, float | None] = (None, None)
    if delta.error is not None and delta.df is not None:
        together = delta.error**2 + alone
        df = together**2 / (delta.error**4 / delta.df + alone**2 / (count - 1))
        both = _interval(delta.mean, math.sqrt(together), df)
    error = math.sqrt(variance)
    return [*delta.interval(), *_interval(statistics.fmean(means), error, count - 1), *both, error]


def _right(run: str, of: str, protocol: str, metric: str, found: Verification) -> dict[tuple[str, str], float]:
    """By (group, sample): 1 where the run got it right, else 0. Empty without outcomes of the set and protocol."""
    if run not in found.folders:
        return {}
    for name, its, columns in outcomes_of(found.folders[run], []):  # what cannot be read was told with the run
        if (name, its) == (of, protocol):
            return dict(
                _hits(metric, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
            )
    return {}


def _hits(metric: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], float]]:
    stem, _, k = metric.partition("@")
    for row in rows:
        if sides := CHOICES.get(stem):
            if any(row[side] > 1 for side in sides):
                yield (str(row["image"]), str(row["key"])), float(all(row[f"found_{side}"] for side in sides))
        elif not k:
            yield (str(row["key"]), ""), float(row["rank"] <= int(stem.removeprefix("acc")))
        elif f"{row['direction']}_recall" == stem:
            yield (str(row["key"]), str(row["caption"])), float(row["rank"] <= int(k))


def _compare(found: Verification, where: str, told: Sequence[float | None], derived: Sequence[float | None]) -> None:
    if agree(derived, told):
        found.report += len(derived)
    else:
        found.problems.append(f"{where} says {told}, derived again it is {derived}")


def _compare_p(found: Verification, where: str, name: str, told: float, derived: float) -> None:
    if math.isclose(derived, told, rel_tol=CLOSE, abs_tol=1e-300):
        found.report += 1
    else:
        found.problems.append(f"{where} says {name} = {told} after Holm, derived again it is {derived}")


def _left_out(column: Mapping[str, Any], values: _Values) -> set[str]:
    """The arms of which not all values could be derived."""
    return {arm["arm"] for arm in column["arms"] if values[arm["arm"]].keys() != arm["values"].keys()}


def _difference(column: Mapping[str, Any], values: _Values, arm: str, than: str, shared: bool) -> Derived:
    ours, theirs = values[arm], values.get(than, {})
    if shared:
        identity = {one["arm"]: one["metric_id"] for one in column["arms"]}
        return _by_all_arms(ours, theirs, [values[one] for one in identity if identity[one] == identity[arm]])
    deltas = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    n, mean, sd = _moments(deltas)
    return Derived(n, mean, sd, sd / math.sqrt(n), n - 1) if sd else Derived(n, mean, sd)


def _holm(p_values: Mapping[_Name, float]) -> dict[_Name, float]:
    """Holm's adjusted p-values, smallest first."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        adjusted[name] = worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[name]))
    return adjusted


def _column(column: Mapping[str, Any], baseline: str, values: _Values, shared: bool, found: Verification) -> None:
    where, tested = f"the report's {column['metric']}", dict[str, Derived]()
    left_out = _left_out(column, values)
    for arm in column["arms"]:
        ours, stated = values[arm["arm"]], arm["values"]
        if arm["arm"] in left_out:
            why = "it is an average of sets, or a run does not have it or cannot be read"
            found.unproven.append(f"{where} of {arm['arm']} is not derived again: {why}")
            continue
        numbers = [(*ours.values(),), (*stated.values(),)]
        pairs = [(numbers[0], numbers[1]), (_summary(list(numbers[0])), _stated(arm["summary"]))]
        if arm["difference"] and not (left_out if shared else baseline in left_out):  # a shared spread is of all
            derived = _difference(column, values, arm["arm"], baseline, shared)
            pairs.append((derived.numbers, _told(arm["difference"])))
            if derived.p is not None and arm["holm_p"] is not None:
                tested[arm["arm"]] = derived
        for again, told in pairs:
            _compare(found, f"{where} of {arm['arm']}", told, again)
    if left_out:
        return  # Holm's correction and simultaneous intervals take all arms
    for name, worst in _holm({name: one.p for name, one in tested.items() if one.p is not None}).items():
        (arm,) = [arm for arm in column["arms"] if arm["arm"] == name]
        _compare_p(found, f"{where} of {name}", "p", arm["holm_p"], worst)
        bounds = tested[name].interval(1 - 0.05 / len(tested))
        _compare(found, f"{where} of {name}, together with all arms,", _bounds(arm["simultaneous"]), bounds)


def _bounds(interval: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval["low"], interval["high"])


def _stated(summary: Mapping[str, Any]) -> tuple[float | None, ...]:
    return (summary["n"], summary["mean"], summary["sd"], *_bounds(summary["interval"]))


def _told(difference: Mapping[str, Any]) -> tuple[float | None, ...]:
    return (*_stated(difference), difference["p"], difference["error"], difference["df"])


def _moments(values: Sequence[float]) -> tuple[int, float, float | None]:
    """Number, mean and standard deviation, which is 0 if values differ by rounding only."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return n, mean, None
    sd = statistics.stdev(values)
    return n, mean, 0.0 if sd <= 1e-12 * max(1.0, *map(abs, values)) else sd


def _summary(values: Sequence[float]) -> tuple[float | None, ...]:
    """`_moments`, and Student's 95 % interval of the mean."""
    n, mean, sd = _moments(values)
    return (n, mean, sd, *_interval(mean, sd / math.sqrt(n) if sd else None, n - 1))


def _interval(
    mean: float, error: float | None, df: float | None, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    from scipy import stats

    if error is None or df is None:
        return None, None
    low, high = stats.t.interval(confidence, df, mean, error)
    return float(low), float(high)


def _by_all_arms(
    ours: Mapping[str, float], theirs: Mapping[str, float], arms: Sequence[Mapping[str, float]]
) -> Derived:
    """A difference with the error that docs/statistics.md describes: all arms tell of the noise.

    Args:
        ours, theirs: values by seed.
        arms: those of all arms that have the metric.
    """
    n, mean, sd = _moments([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    several = [dict(one) for one in {tuple(sorted(one.items())) for one in arms if len(one) > 1}]
    squares = [statistics.variance(one.values()) * (len(one) - 1) for one in several]
    freedom = sum(len(one) - 1 for one in several)
    pool = sum(squares) / freedom if freedom else 0.0
    if n < 2 or pool**0.5 <= 1e-12 * max(1.0, *(abs(value) for one in arms for value in one.values())):
        return Derived(n, mean, sd)
    spread = [square / (len(one) - 1) for square, one in zip(squares, several, strict=True)]
    quiet = min(pool, 4 * statistics.median(one for one in spread if one > 1e-12 * pool))
    products, pairs = 0.0, 0
    for one, two in itertools.combinations(several, 2):
        if len(both := one.keys() & two.keys()) > 1:
            products += statistics.covariance(*([arm[seed] for seed in both] for arm in (one, two))) * (len(both) - 1)
            pairs += len(both) - 1
    common = 0.9 * max(products / pairs, 0.0) if pairs else 0.0
    variances, freedoms = [], []
    for arm in (ours, theirs):
        own, df = statistics.variance(arm.values()), len(arm) - 1
        weight, towards = (12.0, quiet) if own < quiet * (1 - 1e-9) else (0.75, pool)
        weight = min(weight, max(freedom - df, 0))
        variance = df * max(own - common, 0.02 * own) + weight * max(towards - common, 0.02 * towards)
        variances.append(variance / (df + weight))
        freedoms.append(df + weight)
    error = math.sqrt(sum(variances) / n)
    satterthwaite = sum(variances) ** 2 / sum(one**2 / its for one, its in zip(variances, freedoms, strict=True))
    freedom_of_error = min(satterthwaite, max(freedom - max(len(one) - 1 for one in several), n - 1))
    return Derived(n, mean, sd, error, freedom_of_error)
