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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

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
    """One of the export's `metrics`, where all runs were measured under one protocol."""
    base = records.values(records.baseline, metric)
    arms = {arm: records.entries(arm, metric) for arm in records.by_arm if records.entries(arm, metric)}
    differences = {arm: paired(records.values(arm, metric), base) for arm in arms if arm != records.baseline and base}
    known = [arm for arm, one in differences.items() if one["p"] is not None]
    corrected = dict(
        zip(
            known,
            multipletests([differences[arm]["p"] for arm in known], method="holm")[1] if known else [],
            strict=True,
        )
    )
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
            "more_seeds": more_seeds(differences[arm]) if arm in differences else None,
        }
        for arm, entries in arms.items()
    ]
    return {"metric": metric, "protocol_id": next((one["protocol_id"] for one in found), None), "arms": found}


def exported_claim(records: Records, claim: Mapping[str, Any]) -> dict[str, Any]:
    """Difference and verdict of one of the export's `claims`, for a metric of which more is better."""
    delta = paired(*(records.values(claim[side], claim["metric"]) for side in ("arm", "than")))
    settled = delta["interval"] is not None and (delta["interval"]["low"] > 0 or delta["interval"]["high"] < 0)
    return {
        "difference": delta,
        "verdict": ("holds" if delta["mean"] > 0 else "opposite") if settled else "not settled",
    }


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
    """The paired difference over common seeds, as the t-test has it."""
    seeds = sorted(ours.keys() & theirs.keys())
    found = summary([ours[seed] - theirs[seed] for seed in seeds])
    test = stats.ttest_rel([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]) if found["sd"] else None
    return {**found, "p": float(test.pvalue) if test is not None else None}


def more_seeds(delta: Mapping[str, Any]) -> int | None:
    """The first number of pairs that gives the t-test a power of 0.8, less those that there are."""
    if not delta["sd"] or not delta["mean"]:
        return None
    needed = enough(abs(delta["mean"]) / delta["sd"])
    return None if needed is None else max(1, needed - int(delta["n"]))


@cache
def enough(effect: float) -> int | None:
    """The first number of pairs up to 1,000 that gives the paired t-test a power of 0.8."""
    return next((n for n in range(2, 1001) if TTestPower().power(effect, n, 0.05) >= 0.8), None)


def cells(records: Records, export: Mapping[str, Any]) -> dict[str, Rows]:
    """What the tables print, by the beginning of their caption; an empty text stands for one that is no number."""
    return {
        "Arms:": _arms(records, export),
        "Claims": [["", _verdict(records, one), _claimed(records, one), "", ""] for one in export["claims"]],
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
    base = records.values(records.baseline, primary)
    p_values = {one["arm"]: one["holm_p"] for one in exported_metric(records, primary)["arms"]}
    reported = {one["arm"]: one["value"] for one in export["references"] if one["metric"] == primary}
    rows = []
    for arm in records.by_arm:
        ours = records.values(arm, primary)
        row = ["", with_spread(primary, ours.values()), str(len(ours))]
        if arm == records.baseline:
            row += ["baseline", "–"]
        else:
            row += [with_interval(primary, paired(ours, base)), p_value(p_values[arm])]
        row += [f"{printed(primary, reported[arm])} ‡"] if arm in reported else ["–"]
        above = 100 * (np.mean(list(ours.values())) - reported[arm]) if arm in reported else None
        row += ["–" if above is None else f"{above:+.1f}"]
        rows.append(row + [with_spread(metric, records.values(arm, metric).values()) for metric in _secondary(export)])
    return rows


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _secondary(export: Mapping[str, Any]) -> list[str]:
    return [f"shapes_retrieval/{one}_retrieval_recall@1" for one in ("image", "text")]


def _verdict(records: Records, claim: Mapping[str, Any]) -> str:
    return str(exported_claim(records, claim)["verdict"])


def _claimed(records: Records, claim: Mapping[str, Any]) -> str:
    return with_interval(claim["metric"], exported_claim(records, claim)["difference"], " points")


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
