"""A report's numbers once more: from the record files alone, with numpy and scipy, by nothing of `harness.statistics`
or `harness.report`.

`exported_...` is what `harness report --format json` should hold of metrics, claims and runs; `cells` what the tables
should print of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

Rows = list[list[str]]
Values = dict[int, float]
RECORDED = ("evaluations", "cost", "final", "data", "versions", "steps", "samples_seen", "epochs", "attempts")
SHARES = ("acc", "recall", "precision")


@dataclass(frozen=True)
class Records:
    """The record files of an ablation's arms, by arm and seed, arms in declared order."""

    baseline: str
    by_arm: Mapping[str, Mapping[int, dict[str, Any]]]

    @classmethod
    def read(cls, runs: Path, export: Mapping[str, Any]) -> Records:
        """The files under `runs` of the runs that a report's JSON names."""
        found: dict[str, dict[int, dict[str, Any]]] = {arm["name"]: {} for arm in export["arms"]}
        for run in export["runs"]:
            if run["arm"] is not None:
                found[run["arm"]][run["seed"]] = json.loads((runs / run["id"] / "record.json").read_text())
        return cls(export["baseline"], found)

    def metrics(self) -> list[str]:
        """Every measured metric as `set/metric`, then `train/NAME`."""
        records = [record for seeds in self.by_arm.values() for record in seeds.values()]
        measured = [
            f"{one['set']}/{name}" for record in records for one in record["evaluations"] for name in one["metrics"]
        ]
        return list(dict.fromkeys(measured + [f"train/{name}" for record in records for name in record["final"]]))

    def entries(self, arm: str, metric: str) -> dict[int, dict[str, Any]]:
        """What each seed's record says of a metric; nothing where it says nothing."""
        set_name, _, name = metric.partition("/")
        found: dict[int, dict[str, Any]] = {}
        for seed, record in self.by_arm[arm].items():
            if set_name == "train" and name in record["final"]:
                found[seed] = {"value": record["final"][name]}
            for one in record["evaluations"]:
                if one["set"] == set_name and name in one["metrics"]:
                    found[seed] = {**one["metrics"][name], "protocol_id": one["protocol_id"]}
        return found

    def values(self, arm: str, metric: str) -> Values:
        """By seed."""
        return {seed: entry["value"] for seed, entry in self.entries(arm, metric).items()}


def exported_metric(records: Records, metric: str) -> dict[str, Any]:
    """One of the export's `metrics`, where all runs were measured under one protocol and none is at an end."""
    arms = {arm: records.entries(arm, metric) for arm in records.by_arm if records.entries(arm, metric)}
    there = records.baseline in arms
    differences = {arm: shared(records, metric, arm, records.baseline) for arm in arms if there}
    differences.pop(records.baseline, None)
    known = [arm for arm, one in differences.items() if one["p"] is not None]
    corrected = dict(zip(known, adjusted([differences[arm]["p"] for arm in known]), strict=True))
    found = [
        {
            "arm": arm,
            "values": {str(seed): entry["value"] for seed, entry in entries.items()},
            "protocol_id": next(iter(entries.values())).get("protocol_id"),
            "other_protocol": False,
            "standard_error": _mean_of(entries, "standard_error"),
            "samples": next(iter(entries.values())).get("samples"),
            "summary": summary([entry["value"] for entry in entries.values()]),
            "difference": differences.get(arm),
            "holm_p": corrected.get(arm),
            "simultaneous": interval(differences[arm], 1 - 0.05 / len(known)) if arm in known else None,
            "chance": chance(metric),
            "level": None,
        }
        for arm, entries in arms.items()
    ]
    return {"metric": metric, "protocol_id": next((one["protocol_id"] for one in found), None), "arms": found}


def chance(metric: str) -> float | None:
    """Of 36 classes, or of 1,500 images with a caption each."""
    set_name, _, name = metric.partition("/")
    if set_name == "shapes":
        return 5 / 36 if name == "acc5" else 1 / 36
    return 1 / 1500 if set_name == "shapes_retrieval" else None


def exported_claims(records: Records, claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the export says of each claim, for metrics of which more is better. Its attribution is taken as it is."""
    found: list[dict[str, Any]] = [
        {"difference": shared(records, one["metric"], one["arm"], one["than"]), "p": None, "equality_p": None}
        for one in claims
    ]
    judged = [place for place, one in enumerate(claims) if not one["differs_besides"]]
    for place, p in zip(judged, adjusted([found[place]["difference"]["p"] for place in judged]), strict=True):
        found[place]["p"] = p
    bounded = [place for place in judged if claims[place]["margin"]]
    outside = [_outside(found[place]["difference"], claims[place]["margin"]) for place in bounded]
    for place, p in zip(bounded, adjusted(outside), strict=True):
        found[place]["equality_p"] = p
    for place, one in enumerate(found):
        better = one["difference"]["mean"] > 0
        settled = "open" if place in judged and one["p"] >= 0.05 else "better" if better else "worse"
        equal = one["equality_p"] is not None and one["equality_p"] < 0.05
        one["verdict"] = "equal" if equal else settled if place in judged else "not attributable"
    return found


def _outside(delta: Mapping[str, Any], margin: str) -> float:
    """p-value of two one-sided tests, for a margin in points."""
    size = float(margin.split()[0]) / 100
    upper = stats.t.cdf((delta["mean"] - size) / delta["error"], delta["df"])
    lower = stats.t.sf((delta["mean"] + size) / delta["error"], delta["df"])
    return float(max(upper, lower))


def exported_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What one of the export's `runs` holds of its record file."""
    kept = {name: record[name] for name in RECORDED}
    kept["evaluations"] = [{key: one[key] for key in one if key != "protocol"} for one in record["evaluations"]]
    return kept


def summary(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, standard deviation and t-interval of replicates."""
    n, mean, sd = len(values), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    # equal but for rounding: nothing to make an interval of
    sd = 0.0 if sd is not None and sd < 1e-12 * max(1.0, *map(abs, values)) else sd
    low, high = stats.t.interval(0.95, n - 1, mean, sd / math.sqrt(n)) if sd else (None, None)
    return {"n": n, "mean": mean, "sd": sd, "interval": {"low": low, "high": high} if sd else None}


def paired(ours: Values, theirs: Values) -> dict[str, Any]:
    """n, mean and standard deviation of the differences over common seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    found = summary([ours[seed] - theirs[seed] for seed in seeds])
    return {name: found[name] for name in ("n", "mean", "sd")}


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's."""
    return list(multipletests(p_values, method="holm")[1]) if p_values else []


def shared(records: Records, metric: str, arm: str, than: str) -> dict[str, Any]:
    """The difference of two arms with the error that docs/statistics.md describes, where every arm has every seed."""
    every = {one: values for one in records.by_arm if (values := records.values(one, metric))}
    rows = np.unique([[values[seed] for seed in sorted(values)] for values in every.values()], axis=0)
    found = paired(every[arm], every[than])
    covariance = np.atleast_2d(np.cov(rows))
    pool, others = float(np.trace(covariance)) / len(rows), ~np.eye(len(rows), dtype=bool)
    quiet = min(pool, 4 * float(np.median(np.diag(covariance))))
    if math.sqrt(pool) < 1e-12 * max(1.0, float(np.abs(rows).max())):
        return {**found, "interval": None, "p": None, "error": None, "df": None}
    common = 0.9 * max(float(covariance[others].mean()), 0.0) if len(rows) > 1 else 0.0
    seeds, variances, freedoms = rows.shape[1], [], []
    for one in (arm, than):
        own = float(np.var(list(every[one].values()), ddof=1))
        weight, mean = (min(12.0, (len(rows) - 1) * (seeds - 1)), quiet) if own < quiet else (0.75, pool)
        towards = max(mean - common, 0.02 * mean)
        variances.append(((seeds - 1) * max(own - common, 0.02 * own) + weight * towards) / (seeds - 1 + weight))
        freedoms.append(seeds - 1 + weight)
    error = math.sqrt(sum(variances) / seeds)
    df = sum(variances) ** 2 / sum(one**2 / freedom for one, freedom in zip(variances, freedoms, strict=True))
    df = min(df, (len(rows) - 1) * (seeds - 1))
    found |= {"p": float(2 * stats.t.sf(abs(found["mean"]) / error, df)), "error": error, "df": df}
    return {**found, "interval": interval(found)}


def interval(delta: Mapping[str, Any], confidence: float = 0.95) -> dict[str, float]:
    low, high = stats.t.interval(confidence, delta["df"], delta["mean"], delta["error"])
    return {"low": low, "high": high}


def cells(records: Records, export: Mapping[str, Any]) -> dict[str, Rows]:
    """What the tables print, by the beginning of their caption; an empty text stands for one that is no number."""
    return {
        "Arms:": _arms(records, export),
        "Claims": _claims(records, export["claims"]),
        "Reported numbers": [_reference(records, one) for one in export["references"]],
        **{f"{name}: every": _set(records, name) for name in ("shapes", "shapes_retrieval")},
        "Cost": [_cost(records, arm) for arm in records.by_arm],
        "Training at": _training(records),
    }


def printed(metric: str, number: float) -> str:
    """A share in per cent with one decimal, everything else with about four digits."""
    if is_share(metric):
        return f"{100 * number:.1f}".replace("-0.0", "0.0")
    return plain(number)


def is_share(metric: str) -> bool:
    return any(part in metric for part in SHARES)


def plain(number: float) -> str:
    decimals = next((places for limit, places in ((10, 3), (100, 2), (1000, 1)) if abs(number) < limit), 0)
    return f"{number:,.{decimals}f}"


def seconds(time: float) -> str:
    return f"{time:.0f} s" if time < 120 else f"{time / 60:.1f} min"


def with_spread(metric: str, values: Iterable[float]) -> str:
    found = summary(list(values))
    text = printed(metric, found["mean"])
    if found["sd"] is None:
        return text
    places = len(text.partition(".")[2])
    return f"{text} ± {found['sd'] * (100 if is_share(metric) else 1):,.{places}f}"


def with_interval(metric: str, delta: Mapping[str, Any], unit: str = "") -> str:
    sign = "" if printed(metric, delta["mean"]).startswith("-") else "+"
    bounds = ", ".join(printed(metric, delta["interval"][side]) for side in ("low", "high"))
    return f"{sign}{printed(metric, delta['mean'])}{unit} [{bounds}]"


def _arms(records: Records, export: Mapping[str, Any]) -> Rows:
    primary = export["primary"]
    differs_in = {one["name"]: one["differs_in"] for one in export["arms"]}
    p_values = {one["arm"]: one["holm_p"] for one in exported_metric(records, primary)["arms"]}
    reported = {one["arm"]: one["value"] for one in export["references"] if one["metric"] == primary}
    rows = []
    for arm in records.by_arm:
        ours = records.values(arm, primary)
        row = ["", with_spread(primary, ours.values()), str(len(ours))]
        if arm == records.baseline:
            row += ["baseline", "–"]
        else:
            mark = "" if len(differs_in[arm]) == 1 else " §"
            delta = with_interval(primary, shared(records, primary, arm, records.baseline))
            row += [delta + mark, p_value(p_values[arm])]
        row += [f"{printed(primary, reported[arm])} ‡"] if arm in reported else ["–"]
        above = 100 * (np.mean(list(ours.values())) - reported[arm]) if arm in reported else None
        row += ["–" if above is None else f"{above:+.1f}"]
        rows.append(row + [with_spread(metric, records.values(arm, metric).values()) for metric in _secondary(export)])
    return rows


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _secondary(export: Mapping[str, Any]) -> list[str]:
    return [f"shapes_retrieval/{one}_retrieval_recall@1" for one in ("image", "text")]


def _claims(records: Records, claims: Sequence[Mapping[str, Any]]) -> Rows:
    rows = []
    for claim, one in zip(claims, exported_claims(records, claims), strict=True):
        verdict = claim["said"] if one["verdict"] == "not attributable" else one["verdict"]
        p_values = ["–" if one[name] is None else p_value(one[name]) for name in ("p", "equality_p")]
        rows.append(["", verdict, with_interval(claim["metric"], one["difference"], " points"), *p_values, "", "", ""])
    return rows


def _reference(records: Records, reference: Mapping[str, Any]) -> list[str]:
    metric, value = reference["metric"], reference["value"]
    ours = list(records.values(reference["arm"], metric).values())
    above = summary([one - value for one in ours])
    return ["", "", f"{printed(metric, value)} %", with_spread(metric, ours), with_interval(metric, above), "", ""]


def _set(records: Records, name: str) -> Rows:
    metrics = [metric for metric in records.metrics() if metric.startswith(f"{name}/")]
    return [["", *(_with_error(metric, records.entries(arm, metric)) for metric in metrics)] for arm in records.by_arm]


def _with_error(metric: str, entries: Mapping[int, Mapping[str, Any]]) -> str:
    error = _mean_of(entries, "standard_error")
    assert error is not None
    return f"{with_spread(metric, [one['value'] for one in entries.values()])} ({printed(metric, error)})"


def _training(records: Records) -> Rows:
    metrics = [metric for metric in records.metrics() if metric.startswith("train/")]
    metrics.sort(key=lambda metric: metric != "train/loss")
    values = {arm: [list(records.values(arm, metric).values()) for metric in metrics] for arm in records.by_arm}
    return [
        ["", *(with_spread(metric, one) if one else "–" for metric, one in zip(metrics, found, strict=True))]
        for found in values.values()
    ]


def _cost(records: Records, arm: str) -> list[str]:
    costs = [record["cost"] for record in records.by_arm[arm].values()]
    base = [record["cost"]["duration_s"] for record in records.by_arm[records.baseline].values()]
    mean = {
        name: float(np.mean([one[name] for one in costs])) for name in ("duration_s", "evaluation_s", "images_per_s")
    }
    first = next(iter(records.by_arm[arm].values()))
    return [
        "",
        seconds(mean["duration_s"]),
        f"{mean['duration_s'] / np.mean(base):.2f}",
        plain(float(np.mean([one["duration_s"] * one["devices"] for one in costs])) / 3600),
        "–",  # no run says how many operations it took
        seconds(mean["evaluation_s"]),
        f"{mean['images_per_s']:,.0f}",
        f"{max(one['peak_memory_gb'] for one in costs):.2f}",
        f"{first['steps']:,}",
        f"{first['samples_seen']:,}",
        "",
        "",
    ]


def _mean_of(entries: Mapping[int, Mapping[str, Any]], name: str) -> float | None:
    found = [one[name] for one in entries.values() if one.get(name) is not None]
    return float(np.mean(found)) if found else None
