"""One seed: arms sample by sample, from the outcome files of their runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.evaluation.outcomes import Outcomes, write_outcomes
from harness.reporting import collect, render
from harness.reporting.sections.document import Document
from harness.reporting.sections.samples import sample_table
from harness.runs.store import Store
from harness.statistics import mcnemar
from tests.reporting.made import finish, plan_of

N = 200
RANKS = {"one": np.where(np.arange(N) % 2, 1, 3), "other": np.where(np.arange(N) % 3 != 1, 1, 2)}


def alone(root: Path, metric: str = "shapes/acc1", *, protocol: str = "shapes-p1", seeds: int = 1) -> Document:
    table = {
        "question": "Which?",
        "baseline": "one",
        "seeds": seeds,
        "primary": metric,
        "arms": {"one": {}, "other": {"train.optimiser.lr": 0.002}},
    }
    plan, store = plan_of(table), Store(root)
    set_name = metric.partition("/")[0]
    for (arm, seed), run_id in plan.cells.items():
        right = RANKS[arm] == 1
        shuffled = np.random.default_rng(len(arm)).permutation(N)
        keys = np.array([f"s{number:04}" for number in shuffled], dtype=object)
        columns = {"key": keys, "label": shuffled, "prediction": shuffled, "rank": RANKS[arm][shuffled]}
        if "retrieval" in metric:
            images = np.array([f"s{number // 5:04}" for number in shuffled], dtype=object)
            directions = np.array(["image_retrieval"] * N, dtype=object)
            columns = {"direction": directions, "key": images, "caption": shuffled % 5, "rank": RANKS[arm][shuffled]}
        task = "zeroshot_retrieval" if "retrieval" in metric else "zeroshot_classification"
        outcomes = Outcomes(set_name, task, protocol, columns)  # type: ignore[arg-type]
        write_outcomes(store.run(run_id).outcomes, outcomes)
        finish(store, run_id, {metric: float(right.mean()) + 0.01 * seed})
    return Document(collect(plan, store))


def test_one_seed_is_compared_on_samples_in_whatever_order_they_were_kept(tmp_path: Path) -> None:
    document = alone(tmp_path)
    table = sample_table(document.results, document.primary)
    assert table is not None
    ours, theirs = RANKS["other"] == 1, RANKS["one"] == 1
    ((name, delta, only_ours, only_theirs, p, samples),) = [[entry.text for entry in row] for row in table.rows]
    assert name == "other"
    assert delta.startswith(f"{100 * (ours.mean() - theirs.mean()):+.1f} [")
    counts = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert (only_ours, only_theirs, samples) == (*map(str, counts), str(N))
    expected = mcnemar(*counts)
    assert p == ("< 0.001" if expected < 0.001 else f"{expected:.3f}")
    assert "nothing is claimed" in table.notes[0]
    assert "Nothing can be claimed from one seed" in document.answer.sentence
    assert "sample by sample" in render(document.results, "md")


def test_captions_of_an_image_are_drawn_together_and_not_tested_as_if_they_were_alone(tmp_path: Path) -> None:
    document = alone(tmp_path, "shapes_retrieval/image_retrieval_recall@1", protocol="shapes_retrieval-p1")
    table = sample_table(document.results, document.primary)
    assert table is not None
    assert table.rows[0][4].text == "–"
    assert "McNemar's test is left out" in table.notes[1]


@pytest.mark.parametrize("change", ["protocol", "seeds", "damaged", "missing"])
def test_other_protocols_more_seeds_and_lost_files_make_no_such_table(tmp_path: Path, change: str) -> None:
    document = alone(
        tmp_path, protocol="another" if change == "protocol" else "shapes-p1", seeds=2 if change == "seeds" else 1
    )
    file = document.results.runs[0].folder.outcomes / "shapes.shapes-p1.parquet"
    if change == "damaged":
        file.write_bytes(file.read_bytes()[:40])
    if change == "missing":
        file.unlink()
    assert sample_table(document.results, document.primary) is None
