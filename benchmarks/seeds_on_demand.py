"""Seeds on demand against a fixed number of seeds, replayed on real noise: answers, errors, and runs that they cost.

    pip install -e '.[answers]'
    python benchmarks/seeds_on_demand.py                 # 10,000 ablations; about a quarter of an hour on one core
    python benchmarks/seeds_on_demand.py --tuning        # the data sets on which `sequential.HOPE` was chosen
    python benchmarks/seeds_on_demand.py --hpobench      # the second benchmark, which chose nothing

An ablation is drawn as in `benchmarks.answers`, with a claim on each arm against the baseline. The margin is half the
median standard deviation of its arms. The truth is the mean over all splits; under the null, all means are equal.

The networks of a data set of HPOBench are shared out at random in groups of 20, as many as lcdb has learners: among all
15,000, neighbours do not differ. They have 5 seeds. Where an ablation takes all there are, its mean is the truth itself
and no longer errs, so there the null gives the values of each seed to the arms at random instead.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from answers import ARMS, Array, Sets, ablations, hpobench, lcdb, reports

from harness.config.seeds import SeedsOnDemand
from harness.statistics import Difference, Estimator, Evidence, Judged, Rounds, holm

GROUP = 20
"""Networks of HPOBench that are one data set here."""


@dataclass(frozen=True)
class Design:
    """Seeds of both ways."""

    looks: tuple[int, ...]
    fixed: int


LCDB = Design(SeedsOnDemand(until="decided", least=3, most=12).looks, fixed=8)
HPOBENCH = Design(SeedsOnDemand(until="decided", least=3, most=5).looks, fixed=4)
Answers = Mapping[int, tuple[Judged, Difference | None]]
"""By arm: the verdict, and the difference on which it was given."""


def evidence(values: Array, seeds: list[int], arms: list[int], margin: float) -> list[Evidence]:
    """What the first `seeds` of each arm say of the claims on `arms`."""
    table = {str(arm): dict(enumerate(values[arm, : seeds[arm]].tolist())) for arm in range(len(values))}
    estimator = Estimator(table)
    return [Evidence(estimator.difference(str(arm), "0"), margin) for arm in arms]


def on_demand(values: Array, margin: float, looks: tuple[int, ...]) -> tuple[Answers, int]:
    """The answers, and the runs that they took."""
    rounds, seeds, found = Rounds(looks), [looks[0]] * len(values), dict[int, tuple[Judged, Difference | None]]()
    for look, n in enumerate(looks):
        going = [arm for arm in range(1, len(values)) if arm not in found]
        if not going:
            break
        for arm in (0, *going):
            seeds[arm] = n
        seen = evidence(values, seeds, going, margin)
        judged = rounds.judge(seen, look, [word for word, _ in found.values()])
        found |= {
            arm: (word, one.difference) for arm, one, word in zip(going, seen, judged, strict=True) if word != "open"
        }
    return found, sum(seeds)


def fixed(values: Array, margin: float, seeds: int) -> tuple[Answers, int]:
    """The same with a fixed number of seeds, judged as reports do."""
    arms = list(range(1, len(values)))
    seen = evidence(values, [seeds] * len(values), arms, margin)
    different, equal = holm([one.p for one in seen]), holm([one.equality_p for one in seen])
    words: list[Judged] = [
        "equal" if q is not None and q < 0.05 else "different" if p is not None and p < 0.05 else "open"
        for p, q in zip(different, equal, strict=True)
    ]
    return {arm: (word, one.difference) for arm, word, one in zip(arms, words, seen, strict=True)}, seeds * len(values)


def is_wrong(word: Judged, delta: Difference | None, truth: float, margin: float) -> bool:
    """Whether a verdict contradicts the truth."""
    match word:
        case "different":
            return delta is not None and delta.mean * truth <= 0
        case "equal":
            return abs(truth) > margin
        case _:
            return False


def groups(sets: Sets) -> Sets:
    """The arms of each data set in random groups of `GROUP`."""
    rng = np.random.default_rng(0)
    return {
        f"{name}, {number}": values[part]
        for name, values in sorted(sets.items())
        for number, part in enumerate(rng.permutation(len(values))[: len(values) // GROUP * GROUP].reshape(-1, GROUP))
    }


def replay(sets: Sets, design: Design, number: int, *, null: bool = False) -> dict[str, dict[str, float]]:
    """Shares of both ways over `number` ablations."""
    rng, totals = np.random.default_rng(2), {"on demand": Counter[str](), "fixed": Counter[str]()}
    for drawn, whole in ablations(sets, number, design.looks[-1]):
        truth = whole.mean(axis=1) - whole[0].mean()
        values = drawn
        if null:
            values = rng.permuted(drawn, axis=0) if drawn.shape == whole.shape else drawn - truth[:, None]
        margin = float(np.median(whole.std(axis=1, ddof=1))) / 2
        ways = {"on demand": on_demand(values, margin, design.looks), "fixed": fixed(values, margin, design.fixed)}
        for name, (found, runs) in ways.items():
            wrong = [
                is_wrong(word, delta, 0.0 if null else float(truth[arm]), margin)
                for arm, (word, delta) in found.items()
            ]
            totals[name] += Counter(runs=runs, wrong=sum(wrong), families=any(wrong))
            totals[name] += Counter(word for word, _ in found.values())
    claims = number * (ARMS - 1)
    return {
        name: {
            "decided": (total["different"] + total["equal"]) / claims,
            "of these equal": total["equal"] / max(total["different"] + total["equal"], 1),
            "wrong verdicts": total["wrong"] / claims,
            "ablations with a wrong verdict": total["families"] / number,
            "runs": total["runs"] / number,
        }
        for name, total in totals.items()
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--ablations", type=int, default=10_000)
    sets_asked = parser.add_mutually_exclusive_group()
    sets_asked.add_argument("--tuning", action="store_true")
    sets_asked.add_argument("--hpobench", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.hpobench:
        known, design = hpobench(), HPOBENCH
        sets = groups(known)
    else:
        known, design = {name: values for name, values in lcdb().items() if reports(name) != asked.tuning}, LCDB
        sets = known
    found = {
        place: replay(sets, design, asked.ablations, null=null)
        for place, null in (("real differences", False), ("null", True))
    }
    print(f"data sets: {', '.join(sorted(known))}")
    print(f"{asked.ablations:,} ablations of {ARMS} arms, looks at {design.looks} seeds, or {design.fixed} fixed seeds")
    for place, ways in found.items():
        print(f"\n{place}")
        for name, figures in ways.items():
            print(f"{name:10} " + "  ".join(f"{figure} {value:.4g}" for figure, value in figures.items()))
    if asked.json:
        asked.json.write_text(json.dumps({"data sets": sorted(known), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
