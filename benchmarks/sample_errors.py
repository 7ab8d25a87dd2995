"""How often the error bar of another test set covers the truth: many test sets are drawn for a few trained models.

    make demo
    python benchmarks/sample_errors.py                  # 400 test sets for the quickstart's runs; minutes on two cores

The truth of a difference, for these checkpoints, is its mean over all pictures that are drawn. Each test set is a part
of them, disjoint from the others, and says where the truth lies by `statistics.sample_error`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import harness
from harness import api
from harness.config.data import ShapesData
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.data.synthetic import shapes
from harness.data.synthetic.generate import SHAPES_TEMPLATES
from harness.data.synthetic.layout import write_classification
from harness.evaluation.evaluator import evaluate
from harness.evaluation.sets import EvaluationSet, read_set
from harness.models import build_towers, load_weights
from harness.runs.store import Store
from harness.statistics import sample_error


def pictures(data: ShapesData, count: int, folder: Path) -> EvaluationSet:
    """`count` test pictures of the world, none of which its own test set holds."""
    world = ShapesData.model_validate(data.model_dump() | {"test_samples": count})
    drawn = shapes.evaluation_attributes(world)
    labels = (drawn[:, 0].astype(int) * data.colours + drawn[:, 1]).tolist()
    names = shapes.class_names(data)
    write_classification(folder / "drawn", shapes.draw(data, "other tests", drawn), labels, names, SHAPES_TEMPLATES)
    return read_set(folder / "drawn")


def hits(store: Store, run: str, experiment: Experiment, drawn: EvaluationSet) -> NDArray[np.float64]:
    """Which pictures a run's weights classify rightly [n]."""
    towers = build_towers(experiment.model.bare()).eval()
    load_weights(towers.model, store.run(run).weights)
    with torch.inference_mode():
        (found,) = evaluate(towers, [drawn], Evaluation(), batch_size=256, device=torch.device("cpu"))
    order = np.argsort(found.outcomes.columns["key"].astype(str), kind="stable")
    right: NDArray[np.float64] = (found.outcomes.columns["rank"][order] == 1).astype(np.float64)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--spec", default="ablations/quickstart.toml", help="an ablation on `shapes` whose runs are done"
    )
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--size", type=int, default=150, help="pictures of a test set")
    stated = parser.parse_args()
    plan = harness.plan(stated.spec)
    store = api.project(stated.spec).store
    data = plan.arms[0].experiment.data
    assert isinstance(data, ShapesData)
    with tempfile.TemporaryDirectory() as where:
        drawn = pictures(data, stated.sets * stated.size, Path(where))
        experiments = {arm.name: arm.experiment for arm in plan.arms}
        right = {(arm, seed): hits(store, run, experiments[arm], drawn) for (arm, seed), run in plan.cells.items()}
    print("| arm against the baseline | seeds | truth, points | mean width | covered |\n|---|---|---|---|---|")
    every = []
    order = np.random.default_rng(0).permutation(stated.sets * stated.size)
    for arm in (arm.name for arm in plan.arms if arm.name != plan.ablation.baseline):
        seeds = sorted(seed for name, seed in right if name == arm)
        deltas = np.stack([right[arm, seed] - right[plan.ablation.baseline, seed] for seed in seeds])[:, order]
        truth = float(deltas.mean())
        intervals = [
            found.interval
            for part in np.split(deltas, stated.sets, axis=1)
            if (found := sample_error(part)) is not None
        ]
        covered = [one.low <= truth <= one.high for one in intervals]
        width = 100 * float(np.mean([one.high - one.low for one in intervals]))
        every += covered
        print(f"| {arm} | {len(seeds)} | {100 * truth:+.1f} | {width:.1f} | {np.mean(covered):.3f} |")
    print(f"| all | | | | {np.mean(every):.3f} |")


if __name__ == "__main__":
    main()
