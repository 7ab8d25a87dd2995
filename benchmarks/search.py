"""Search strategies on tables of real learning curves: what is chosen, at equal cost.

    python benchmarks/search.py CURVES OUT.json [--tables NAME...] [--methods NAME...] [--seeds 10]
    python benchmarks/search.py CURVES OUT.json --summary [--plot FILE.png]
    python benchmarks/search.py CURVES LCDB.json --tables lcdb --seeds 172    # pip install -e '.[answers]'

Four simulated workers train configurations of a table (see `search_curves`) epoch by epoch; a method gets the budget
of 24 full runs (8 on lcdb). At every multiple of a full run, it is scored by the error at full length of the
configuration that it would select (not by the best number that it has seen, which stands beside). The strategies are
the harness's own code (`harness.searching.study`); tables of HELD_BACK were not looked at while `ladder` was made, but
for its probes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from search_curves import load, names
from search_simulation import Method, Simulation

Score = Callable[[dict[str, Any]], float]
FIRST = {"first_rung": 1, "reduction": 3}
FRACTIONS = (0.1, 0.25)
SPENT = (4, 8, 16, 24)
"""Full runs after which methods are ranked, as far as they have so many."""
SHOWN = ("random", "GP", "TPE + ASHA", "FastBO", "FastBO, selected at full length", "Syne Tune ASHA", "ladder, GP")
HELD_BACK = ("digits_noise40", "cancer_noise15", "blobs_noise10", "late_onset", "crossing", "divergence")


METHODS = {
    "random": Method("random"),
    "TPE": Method("tpe"),
    "GP": Method("gp"),
    "TPE + ASHA": Method("tpe", {"kind": "asha", **FIRST}),
    "random + ASHA": Method("random", {"kind": "asha", **FIRST}),
    "TPE + Hyperband": Method("tpe", {"kind": "hyperband", **FIRST}),
    "GP + median": Method("gp", {"kind": "median"}),
    "FastBO": Method("gp", {"kind": "fastbo"}, by_best_seen=True),
    "FastBO, selected at full length": Method("gp", {"kind": "fastbo"}),
    "FastBO around TPE": Method("tpe", {"kind": "fastbo"}, by_best_seen=True),
    "FastBO, relative thresholds": Method("gp", {"kind": "fastbo", "thresholds": "relative"}, by_best_seen=True),
    "ladder, GP": Method("gp", {"kind": "ladder"}),
    "ladder, TPE": Method("tpe", {"kind": "ladder"}),
    "ladder without probes, GP": Method("gp", {"kind": "ladder", "probes": 0}),
    "ladder without probes, TPE": Method("tpe", {"kind": "ladder", "probes": 0}),
    "ladder without probes, random": Method("random", {"kind": "ladder", "probes": 0}),
    "Syne Tune ASHA": Method("syne-tune ASHA"),
    "Syne Tune BOHB": Method("syne-tune BOHB"),
} | {f"GP at {fraction:.0%}": Method("gp", fraction=fraction) for fraction in FRACTIONS}


def measure(folder: Path, table: str, method: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Searches with one method on one table."""
    tables = [load(folder, table, seed) for seed in seeds]
    outcomes = [Simulation(curves, METHODS[method], seed).run() for seed, curves in zip(seeds, tables, strict=True)]
    selected = np.array([one.selected for one in outcomes])
    best = np.array([curves.best for curves in tables])
    regrets = selected[:, -1] - best
    return {
        "table": table,
        "method": method,
        "epochs": tables[0].epochs,
        "best": best.tolist(),
        "selected": selected.tolist(),
        "seen": [one.seen for one in outcomes],
        "regret": float(regrets.mean()),
        "half": _half_width(regrets),
        "trials": float(np.mean([one.trials for one in outcomes])),
        "spent": float(np.mean([one.spent for one in outcomes])),
        "stop": float(np.mean([np.mean(one.stops) for one in outcomes])),
        "asking_s": float(np.mean([one.asking_s for one in outcomes])),
    }


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Regret at the end by table, in points; then how each method ranks on the way, and how it went about it."""
    tables = list(dict.fromkeys(one["table"] for one in results))
    methods = sorted({one["method"] for one in results}, key=lambda name: _mean_rank(results, name, _selected(-1)))
    cells = {(one["method"], one["table"]): one for one in results}
    heads = [f"{table}{'*' if table in HELD_BACK else ''}" for table in tables]
    lines = _table(
        ["method", *heads, "mean rank"],
        [[m, *(_cell(cells.get((m, t))) for t in tables), _rank(results, m, _selected(-1))] for m in methods],
    )
    spent = [share for share in SPENT if share <= min(len(one["selected"][0]) for one in results)]
    scores = [*(_selected(share - 1) for share in spent), _seen]
    lines += [
        "",
        *_table(
            [
                "method",
                *(f"rank at {share}" for share in spent),
                "rank by best seen",
                "trials",
                "left at",
                "asking, ms",
            ],
            [[m, *(_rank(results, m, score) for score in scores), *_ways(results, m)] for m in methods],
        ),
    ]
    return "\n".join(lines)


def paired(results: Sequence[dict[str, Any]], against: str) -> str:
    """How much more regret each method has at the end than `against`, in points, paired by the seeds of a table."""
    base = {one["table"]: _regrets(one) for one in results if one["method"] == against}
    methods = [name for name in dict.fromkeys(one["method"] for one in results) if name != against]
    rows = []
    for method in methods:
        row = [method]
        for table, theirs in base.items():
            ours = [_regrets(one) for one in results if (one["method"], one["table"]) == (method, table)]
            more = 100 * (ours[0] - theirs) if ours else None
            row.append("" if more is None else f"{more.mean():+.2f} ± {_half_width(more):.2f}")
        rows.append(row)
    return "\n".join(_table([f"more than {against}", *base], rows))


def _regrets(one: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Regret at the end of each search."""
    regrets: np.ndarray[Any, Any] = np.array(one["selected"])[:, -1] - np.array(one["best"])
    return regrets


def _selected(place: int) -> Score:
    return lambda one: float(np.mean(one["selected"], axis=0)[place])


def _seen(one: dict[str, Any]) -> float:
    return float(np.mean(one["seen"], axis=0)[-1])


def _mean_rank(results: Sequence[dict[str, Any]], method: str, score: Score) -> float:
    """Over the tables that it was tried on; ties share their ranks."""
    ranks = []
    for mine in (one for one in results if one["method"] == method):
        beside = [score(one) for one in results if one["table"] == mine["table"]]
        ranks.append(stats.rankdata(beside)[beside.index(score(mine))])
    return float(np.mean(ranks))


def _rank(results: Sequence[dict[str, Any]], method: str, score: Score) -> str:
    return f"{_mean_rank(results, method, score):.1f}"


def _cell(one: dict[str, Any] | None) -> str:
    return f"{100 * one['regret']:.2f} ± {100 * one['half']:.2f}" if one else ""


def _ways(results: Sequence[dict[str, Any]], method: str) -> list[str]:
    """Configurations tried, the share of the epochs at which they were left, and the time of a suggestion."""
    mine = [one for one in results if one["method"] == method]
    trials = np.mean([one["trials"] for one in mine])
    left = np.mean([one["stop"] / one["epochs"] for one in mine])
    asking = np.mean([one["asking_s"] / one["trials"] for one in mine])
    return [f"{trials:.0f}", f"{left:.0%}", f"{1000 * asking:.0f}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Regret by cost of the methods of SHOWN, a panel for each table; bands are 95 % intervals over seeds."""
    from matplotlib import pyplot

    tables = list(dict.fromkeys(one["table"] for one in results))
    figure, panels = pyplot.subplots(-(-len(tables) // 3), 3, figsize=(11, 2.8 * -(-len(tables) // 3)), squeeze=False)
    for panel, table in zip(panels.flat, tables, strict=False):
        for place, name in enumerate(SHOWN):
            for one in (one for one in results if (one["method"], one["table"]) == (name, table)):
                regret = 100 * (np.array(one["selected"]) - np.reshape(one["best"], (-1, 1)))
                middle, half = regret.mean(0), np.array([_half_width(column) for column in regret.T])
                spent = np.arange(1, len(middle) + 1)
                panel.plot(spent, middle, color=f"C{place}", label=name, linewidth=1.3)
                panel.fill_between(spent, middle - half, middle + half, color=f"C{place}", alpha=0.12, linewidth=0)
        panel.set(title=table, yscale="symlog", xlabel="full runs spent", ylabel="regret, points")
        panel.set_ylim(0, None)
    for panel in panels.flat[len(tables) :]:
        panel.axis("off")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(file)


def _half_width(values: np.ndarray[Any, Any]) -> float:
    """Half of the 95 % t-interval of a mean."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables", nargs="+", default=names())
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--summary", action="store_true", help="print what OUT.json holds, and search nothing")
    parser.add_argument("--against", metavar="METHOD", help="with --summary: print differences to this method, too")
    parser.add_argument("--plot", type=Path, help="draw what OUT.json holds, and search nothing")
    asked = parser.parse_args(arguments)
    results = json.loads(asked.out.read_text()) if asked.out.exists() else []
    if asked.plot:
        plot(results, asked.plot)
    if asked.summary:
        print(summary(results))
        if asked.against:
            print(f"\n{paired(results, asked.against)}")
    if asked.plot or asked.summary:
        return
    for table in asked.tables:
        for method in asked.methods:
            if any((one["table"], one["method"]) == (table, method) for one in results):
                continue
            one = measure(asked.curves, table, method, range(asked.seeds))
            results.append(one)
            asked.out.write_text(json.dumps(results))
            print(
                f"{table:16} {method:32} regret {one['regret']:.4f} ± {one['half']:.4f}  trials {one['trials']:.0f} "
                f"spent {one['spent']:.1f} stop {one['stop']:.1f} asking {one['asking_s']:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
